"""``validate`` checks and counts a run with control images as the engine trains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.models import options_with, tiny_model
from tests.trainer_engine.families.control.test_flux import controlled, padded, their_plain, wide_model
from tests.trainer_engine.families.controlnet.runs import controlled_datasets
from tests.training.conftest import Training
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.components import spec_of_run
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import Level
from training.preflight.network import count_parameters, network_tensors
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport

BASE = "pretrained_model_name_or_path"
LORA = {"model_type": "lora", "lora_type": "standard", "lora_rank": "4"}


def examined(training: Training, place: Path, datasets: list[dict[str, Any]] | None = None, **changes: str) -> PreflightReport:
    home = Home(training.home)
    file = place / "controlled.json"
    file.write_text(json.dumps(datasets or controlled_datasets(place)))
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    sent = {"model_family": "flux", "model_flavour": "dev", BASE: str(tiny_model("flux", flavour="dev")), "control": "true", **LORA}
    sent |= {"data_backend_config": str(file), "resolution": "64", **changes}
    form |= {f"--{option}": value for option, value in sent.items()}
    return examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": ""})


def errors(report: PreflightReport) -> dict[str, str]:
    return {problem.option: problem.code for problem in report.problems if problem.level is Level.ERROR}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_with_control_images_is_accepted_and_counted(kind: str, training: Training, tmp_path: Path) -> None:
    report = examined(training, tmp_path, model_type=kind)
    assert errors(report) == {}
    assert report.understood is not None
    assert report.understood["model"]["parameters"] == sum(one.numel() for one in padded(their_plain()).parameters())


def test_the_first_layer_is_counted_as_wide_as_it_is_trained(tmp_path: Path) -> None:
    options = options_with(model_family="flux", model_flavour="dev", control=True, **{BASE: str(tiny_model("flux", flavour="dev"))})
    spec = spec_of_run(options.model, specs()["flux"])
    tensors = network_tensors(options.model, spec, tmp_path)
    assert tensors is not None and tensors["x_embedder.weight"] == (32, 128)
    assert count_parameters(tensors) == sum(one.numel() for one in padded(their_plain()).parameters())


def test_the_rank_may_be_as_large_as_the_widened_layer_allows(training: Training, tmp_path: Path) -> None:
    assert errors(examined(training, tmp_path, lora_rank="32")) == {}
    report = examined(training, tmp_path, lora_rank="33")
    assert errors(report)["lora_rank"] == "rank_too_large"


@pytest.mark.parametrize(
    ("factor", "control", "code"),
    [(2, "true", None), (2, "false", "needs_control"), (6, "true", "other_width"), (6, "false", "other_width")],
)
def test_base_weights_of_another_width_are_refused(factor: int, control: str, code: str | None, training: Training, tmp_path: Path) -> None:
    model = wide_model(tmp_path, factor=factor)
    report = examined(training, tmp_path, control=control, **{BASE: str(model)})
    assert errors(report).get(BASE) == code


def test_another_adapter_must_be_on_a_widened_layer(training: Training, tmp_path: Path) -> None:
    trainable: Any = make_trainable(controlled(**{**LORA, "lora_rank": 4}), None)
    trainable.save(tmp_path / "wide")
    assert errors(examined(training, tmp_path, init_lora=str(tmp_path / "wide/pytorch_lora_weights.safetensors"))) == {}
    tensors = {name: tensor for name, tensor in trainable.tensors().items() if "x_embedder" not in name}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "plain.safetensors")
    refused = errors(examined(training, tmp_path, init_lora=str(tmp_path / "plain.safetensors")))
    assert "init_lora" in refused


def test_images_without_control_images_are_named(training: Training, tmp_path: Path) -> None:
    datasets = controlled_datasets(tmp_path)
    lost = sorted((tmp_path / "controls").glob("*.png"))[0]
    lost.unlink()
    report = examined(training, tmp_path, datasets)
    (problem,) = [one for one in report.problems if one.code == "missing_reference"]
    assert lost.stem in problem.message and "have no control image" in problem.message


def test_options_and_datasets_are_refused_at_once(training: Training, tmp_path: Path) -> None:
    datasets = controlled_datasets(tmp_path)
    report = examined(training, tmp_path, [{**datasets[0], "conditioning_data": []}, datasets[1]], controlnet="true")
    assert errors(report).get("control") == "not_with_controlnet"
    assert "dataloader[0].conditioning_data" in errors(report)


def test_control_images_add_weights_but_no_tokens_to_the_memory(training: Training, tmp_path: Path) -> None:
    pictures, texts, _ = datasets = controlled_datasets(tmp_path)
    plain = [{name: value for name, value in pictures.items() if name != "conditioning_data"}, texts]
    ours = examined(training, tmp_path, datasets, model_type="full")
    theirs = examined(training, tmp_path, plain, model_type="full", control="false")
    assert errors(ours) == errors(theirs) == {} and ours.understood is not None and theirs.understood is not None
    more, new_weights = (ours.understood["memory"]["bytes"] - theirs.understood["memory"]["bytes"]), 32 * 64
    assert 4 * new_weights <= more <= 20 * new_weights, "weights, gradients and the state of the optimizer"

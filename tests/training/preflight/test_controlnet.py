"""``validate`` checks and counts a ControlNet as the engine trains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.checked_runs import memory_of_training
from tests.helpers.models import tiny_model
from tests.trainer_engine.families.controlnet.runs import controlled_datasets
from tests.trainer_engine.families.controlnet.test_unets import awake, steered
from tests.training.conftest import Training
from trainer_engine.contract.errors import Level
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport

WEIGHTS = "controlnet_model_name_or_path"


def examined(training: Training, place: Path, datasets: list[dict[str, Any]] | None = None, **changes: str) -> PreflightReport:
    home = Home(training.home)
    file = place / "controlled.json"
    file.write_text(json.dumps(datasets or controlled_datasets(place)))
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    sent = {"model_family": "sd1x", "pretrained_model_name_or_path": str(tiny_model("sd1x")), "controlnet": "true"}
    sent |= {"data_backend_config": str(file), "resolution": "64", **changes}
    form |= {f"--{option}": value for option, value in sent.items()}
    return examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": ""})


def errors(report: PreflightReport) -> dict[str, str]:
    return {problem.option: problem.code for problem in report.problems if problem.level is Level.ERROR}


def test_a_run_of_a_new_controlnet_is_accepted_and_counted(training: Training, tmp_path: Path) -> None:
    report = examined(training, tmp_path)
    assert errors(report) == {}
    assert report.understood is not None
    assert report.understood["model"]["parameters"] == 361_279_120, "as it is made of the published network"


def test_the_frozen_network_is_a_part_of_the_memory(training: Training, tmp_path: Path) -> None:
    plain, quantised = (examined(training, tmp_path, base_model_precision=name) for name in ("no_change", "int8-quanto"))
    assert plain.understood is not None and quantised.understood is not None
    saved = memory_of_training(plain.understood)["bytes"] - memory_of_training(quantised.understood)["bytes"]
    network = UNet2DConditionModel.from_pretrained(tiny_model("sd1x"), subfolder="unet")
    numbers = sum(weight.numel() for weight in network.parameters())
    assert 2.8 * numbers < saved < 3 * numbers, "as it is on this machine, in one byte a weight instead of four"


def test_own_weights_are_accepted_and_an_adapter_is_counted_on_them(training: Training, tmp_path: Path) -> None:
    network: Any = awake(steered("sd1x").load_network())
    network.save_pretrained(tmp_path / "mine")
    adapter = {"model_type": "lora", "lora_type": "standard", "lora_rank": "2"}
    report = examined(training, tmp_path, **{WEIGHTS: str(tmp_path / "mine")}, **adapter)
    assert errors(report) == {}
    assert report.understood is not None
    assert report.understood["model"]["parameters"] == sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize("kind", ["unet", "text_encoder", "nothing"])
def test_weights_that_are_no_controlnet_are_refused(kind: str, training: Training, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    folder = tmp_path / "nothing" if kind == "nothing" else tiny_model("sd1x") / kind
    assert errors(examined(training, tmp_path, **{WEIGHTS: str(folder)})).get(WEIGHTS) in ("other_model", "not_a_model")


def test_a_controlnet_of_another_family_is_refused(training: Training, tmp_path: Path) -> None:
    network: Any = steered("sdxl").load_network()
    network.save_pretrained(tmp_path / "mine")
    assert WEIGHTS in errors(examined(training, tmp_path, **{WEIGHTS: str(tmp_path / "mine")}))


def test_images_without_control_images_are_named(training: Training, tmp_path: Path) -> None:
    datasets = controlled_datasets(tmp_path)
    lost = sorted((tmp_path / "controls").glob("*.png"))[0]
    lost.unlink()
    report = examined(training, tmp_path, datasets)
    (problem,) = [one for one in report.problems if one.code == "missing_reference"]
    assert lost.stem in problem.message and "have no control image" in problem.message
    assert errors(examined(training, tmp_path, [{**datasets[0], "conditioning_data": []}, datasets[1]])) != {}

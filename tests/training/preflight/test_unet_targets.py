"""The layers that ``unet_lora_target`` names: those that a run adapts, and those that the checks before it count."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.models import options_with, tiny_model
from tests.helpers.params import often
from tests.helpers.tiny_run import train_here
from tests.training.conftest import Training
from trainer_engine.config.families import specs
from trainer_engine.config.parse import check_options
from trainer_engine.contract.checkpoint_files import ADAPTER_FILE, list_checkpoints
from training.preflight.network import adaptable_layers, network_tensors
from training.preflight.run import examine_run
from training.preflight.weights import numbers_in, trained_weights

OPTION = "unet_lora_target"
EXPECTED = {
    "attention": {"to_q", "to_k", "to_v", "to_out.0"},
    "attention+ffs": {"to_q", "ff.net.0.proj", "ff.net.2"},
    "attention+convs": {"to_q", "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"},
    "all": {"to_q", "ff.net.2", "conv1", "proj_in", "proj_out", "time_emb_proj", "upsamplers.0.conv"},
}
NEVER = ("conv_in", "conv_out", "time_embedding", "norm")


def trained(place: Path, family: str, target: str) -> Path:
    adapter = {"model_type": "lora", "lora_rank": 2, OPTION: target}
    run = train_here(place, model_family=family, model=str(tiny_model(family)), max_train_steps=1, **adapter)
    return list_checkpoints(run.output_dir)[0].path / ADAPTER_FILE


@pytest.mark.parametrize("target", EXPECTED)
@pytest.mark.parametrize("family", often(["sd1x", "sdxl"]))
def test_a_run_adapts_the_named_layers_and_the_checks_count_them(family: str, target: str, training: Training, tmp_path: Path) -> None:
    path = trained(tmp_path, family, target)
    tensors = load_file(path)
    modules = {key.removeprefix("unet.").removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    endings = tuple(f".{ending}" for ending in EXPECTED[target])
    assert all(any(module.endswith(ending) for module in modules) for ending in endings)
    assert not [module for module in modules if module.rpartition(".")[2].startswith(NEVER)]

    values = {"model_family": family, "model_type": "lora", "lora_rank": 2, "pretrained_model_name_or_path": str(tiny_model(family))}
    options = options_with(**values, **{OPTION: target})
    shapes = network_tensors(options.model, specs()[family], Path("no-cache"))
    assert shapes is not None and modules <= set(adaptable_layers(shapes))
    counted = numbers_in(trained_weights(options, specs()[family], 0, shapes))
    assert counted == sum(math.prod(tensor.shape) for tensor in tensors.values())

    form = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    home, adapter = Home(training.home), training.home / "adapter.safetensors"
    adapter.write_bytes(path.read_bytes())
    report = examine_run(resolve_run(home, {}, {**form, **values, OPTION: target, "init_lora": str(adapter)}), home)
    assert not [problem for problem in report.errors if problem.option in ("init_lora", OPTION, "lora_rank")]


@pytest.mark.parametrize(("family", "layer"), [("sd1x", "conv_in"), ("pixart_sigma", "proj_out"), ("flux", "attn.to_out.0")])
def test_slider_layers_are_counted_saved_and_loaded_again(family: str, layer: str, training: Training, tmp_path: Path) -> None:
    values = {"model_family": family, "model_type": "lora", "lora_rank": 2, "slider_lora_target": True}
    model = str(tiny_model(family))
    run = train_here(tmp_path, model=model, max_train_steps=1, **values)
    path = list_checkpoints(run.output_dir)[0].path / ADAPTER_FILE
    tensors = load_file(path)
    modules = {key.partition(".")[2].removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    assert any(f".{module}".endswith(f".{layer}") for module in modules)

    options = options_with(**values, pretrained_model_name_or_path=model)
    shapes = network_tensors(options.model, specs()[family], Path("no-cache"))
    assert shapes is not None and modules <= set(adaptable_layers(shapes))
    counted = numbers_in(trained_weights(options, specs()[family], 0, shapes))
    assert counted == sum(math.prod(tensor.shape) for tensor in tensors.values())

    form = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    home, adapter = Home(training.home), training.home / "adapter.safetensors"
    adapter.write_bytes(path.read_bytes())
    again = {**form, **values, "pretrained_model_name_or_path": model, "init_lora": str(adapter)}
    report = examine_run(resolve_run(home, {}, again), home)
    assert not [problem for problem in report.errors if problem.option in ("init_lora", "slider_lora_target", "lora_rank")]
    more = train_here(tmp_path, model=model, max_train_steps=2, **values)
    assert more.step == 2


def test_a_rank_beyond_the_smallest_slider_layer_is_refused_before_the_run(training: Training) -> None:
    values = {"model_family": "sd1x", "model_type": "lora", "slider_lora_target": True, "lora_rank": 200}
    form = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    home = Home(training.home)
    report = examine_run(resolve_run(home, {}, {**form, **values, "pretrained_model_name_or_path": str(tiny_model("sd1x"))}), home)
    [refused] = [problem for problem in report.errors if problem.option == "lora_rank"]
    assert refused.code == "rank_too_large"


def test_an_adapter_of_other_layers_is_refused_with_the_layers_to_target(training: Training, tmp_path: Path) -> None:
    adapter = training.home / "adapter.safetensors"
    adapter.write_bytes(trained(tmp_path, "sd1x", "attention+convs").read_bytes())
    values = {"model_family": "sd1x", "model_type": "lora", "lora_rank": "2", "pretrained_model_name_or_path": str(tiny_model("sd1x"))}
    form = {name.lstrip("-"): value for name, value in training.form.items() if not name.startswith("__")}
    home = Home(training.home)
    report = examine_run(resolve_run(home, {}, {**form, **values, "init_lora": str(adapter)}), home)
    (found,) = [problem for problem in report.errors if problem.option == "init_lora"]
    assert "layers that the run does not" in found.message and "conv1" in found.hint


def codes(option: str = OPTION, **values: Any) -> set[tuple[str, str]]:
    given = {**options_with(model_type="lora").as_values(), **values}
    return {(problem.code, problem.message) for problem in check_options(given)[1] if problem.option == option}


def test_the_option_is_noted_where_it_does_nothing() -> None:
    ((code, message),) = codes(**{OPTION: "all"})
    assert code == "no_effect" and "no layers of PixArt Sigma" in message
    ((_, message),) = codes(model_family="sd1x", peft_lora_target_modules=json.dumps(["to_q"]), **{OPTION: "all"})
    assert "peft_lora_target_modules overrides it" in message
    assert not codes(model_family="sd1x", **{OPTION: "all"})
    ((code, _),) = codes(model_family="sd1x", **{OPTION: "everything"})
    assert code == "not_a_choice"


def test_layers_of_flux_are_named_in_the_same_way() -> None:
    option = "flux_lora_target"
    ((code, message),) = codes(option, **{option: "context"})
    assert code == "no_effect" and "no layers of PixArt Sigma" in message
    for values in ({"model_flavour": "kontext"}, {"model_flavour": "dev"}):
        assert not codes(option, model_family="flux", **values, **{option: "context"})
    ((code, message),) = codes(option, model_family="flux", peft_lora_target_modules=json.dumps(["to_q"]), **{option: "mmdit"})
    assert code == "no_effect" and "peft_lora_target_modules overrides it" in message
    ((code, _),) = codes(option, model_family="flux", lora_type="lycoris", **{option: "mmdit"})
    assert code == "no_effect"
    assert {code for code, _ in codes(option, model_family="flux", model_type="full", **{option: "mmdit"})} == {"no_adapter"}

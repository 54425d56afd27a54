"""``validate`` counts and checks trained text encoders as the engine trains them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.checked_runs import memory_of_training
from tests.helpers.models import options_with, tiny_model
from tests.helpers.one_file import SD1, SD2, SDXL, write_one_file
from tests.training.conftest import Training
from trainer_engine.adapters.build import make_trainable
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.families.load import load_family
from trainer_engine.runtime.devices import resolve_devices
from training.preflight.adapter import adapted_layers
from training.preflight.network import Shapes, count_parameters, layer_shapes, module_names, network_tensors
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport
from training.preflight.weights import frozen_network_bytes, numbers_in, split_layers, trained_weights

LORA: Mapping[str, Any] = {"model_type": "lora", "lora_rank": 4, "lora_dropout": 0}


def spec_of(name: str) -> FamilySpec:
    return specs()[name].for_run(train_text_encoder=True)


def tensors_of(name: str, base: Path | None = None, **values: Any) -> Shapes:
    """The tensors of the network and its text encoders, as ``validate`` reads them from a folder or one file."""
    source = {"pretrained_model_name_or_path": str(base or tiny_model(name)), **values}
    options = options_with(model_family=name, train_text_encoder=True, **source)
    found = network_tensors(options.model, spec_of(name), Path("/no/cache"))
    assert found is not None
    return found


def trainable_of(name: str, **values: Any) -> Any:
    chosen = {"pretrained_model_name_or_path": str(tiny_model(name)), "train_text_encoder": True, **values}
    options = options_with(model_family=name, **chosen)
    return make_trainable(load_family(options, resolve_devices(options, torch.device("cpu"))), None)


def report_of(training: Training, name: str = "sdxl", **changes: Any) -> PreflightReport:
    home = Home(training.home)
    form = {name: value for name, value in training.form.items() if not name.startswith("__")}
    sent = {"model_family": name, "pretrained_model_name_or_path": str(tiny_model(name)), "train_text_encoder": "true", **changes}
    form |= {f"--{option}": str(value) for option, value in sent.items()}
    return examine_run(resolve_run(home, {}, form), home, {"CUDA_VISIBLE_DEVICES": ""})


@pytest.mark.parametrize("name", ["sd1x", "sd2x", "sdxl"])
def test_the_names_and_numbers_are_those_of_the_engine(name: str) -> None:
    network = trainable_of(name, gradient_checkpointing=False).network
    shapes = tensors_of(name)
    assert shapes == {key: tuple(weight.shape) for key, weight in network.named_parameters()}
    assert count_parameters(shapes) == sum(weight.numel() for weight in network.parameters())
    assert module_names(shapes) <= {key for key, _ in network.named_modules()}


@pytest.mark.parametrize(("name", "encoders"), [("sd1x", SD1), ("sd2x", SD2), ("sdxl", SDXL)])
def test_one_file_has_the_names_and_shapes_of_the_folder(name: str, encoders: Mapping[str, str], tmp_path: Path) -> None:
    projections = {f"{prefix}text_projection": torch.zeros(3, 5) for prefix in encoders.values() if name == "sd2x"}
    unread = {f"{prefix}transformer.resblocks.99.attn.in_proj_weight": torch.zeros(9, 3) for prefix in encoders.values()}
    buffers = {f"{prefix}text_model.embeddings.position_ids": torch.zeros(1, 77) for prefix in encoders.values()}
    file = write_one_file(tiny_model(name), tmp_path / "model.safetensors", encoders, **projections, **unread, **buffers)
    assert tensors_of(name, file, pretrained_config_name_or_path=str(tiny_model(name))) == tensors_of(name)


@pytest.mark.parametrize("key", ["attn.in_proj_weight", "attn.in_proj_bias", "mlp.c_fc.weight"])
@pytest.mark.parametrize("layer", ["0", "9" * 5000])
def test_a_foreign_tensor_of_a_text_encoder_in_one_file_stops_no_validation(tmp_path: Path, key: str, layer: str) -> None:
    odd = {f"cond_stage_model.model.transformer.resblocks.{layer}.{key}": torch.tensor(1.0)}
    file = write_one_file(tiny_model("sd2x"), tmp_path / "model.safetensors", SD2, **odd)
    source = {"pretrained_model_name_or_path": str(file), "pretrained_config_name_or_path": str(tiny_model("sd2x"))}
    options = options_with(model_family="sd2x", train_text_encoder=True, **source)
    found = network_tensors(options.model, spec_of("sd2x"), Path("/no/cache"))
    assert found is None or found.keys() == tensors_of("sd2x").keys()


@pytest.mark.parametrize(
    "config", [{}, {"architectures": None, "num_hidden_layers": 2}, {"architectures": ["x"], "num_hidden_layers": {}}, [1]]
)
def test_a_foreign_configuration_of_a_text_encoder_stops_no_validation(tmp_path: Path, config: object) -> None:
    pipeline = Path(shutil.copytree(tiny_model("sd1x"), tmp_path / "pipeline"))
    file = write_one_file(pipeline, tmp_path / "model.safetensors", SD1)
    (pipeline / "text_encoder/config.json").write_text(json.dumps(config))
    source = {"pretrained_model_name_or_path": str(file), "pretrained_config_name_or_path": str(pipeline)}
    options = options_with(model_family="sd1x", train_text_encoder=True, **source)
    assert network_tensors(options.model, spec_of("sd1x"), Path("/no/cache")) is None


def test_published_files_with_the_prefix_of_older_libraries_have_the_same_names(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("sd1x"), tmp_path / "published"))
    file = folder / "text_encoder/model.safetensors"
    save_file({f"text_model.{key}": tensor for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert tensors_of("sd1x", folder) == tensors_of("sd1x")
    ours, theirs = (trainable_of("sd1x", pretrained_model_name_or_path=str(base)).network for base in (folder, tiny_model("sd1x")))
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", ["sd1x", "sdxl"])
def test_the_adapted_layers_are_those_of_the_engine(name: str) -> None:
    adapter: Any = trainable_of(name, **LORA)
    options = options_with(model_family=name, train_text_encoder=True, **LORA)
    tensors = tensors_of(name)
    assert set(adapted_layers(options, spec_of(name), layer_shapes(tensors))) == set(adapter.layers)
    stored = sum(tensor.numel() for tensor in adapter.tensors().values())
    assert numbers_in(trained_weights(options, spec_of(name), 0, tensors)) == stored


def test_layers_are_split_into_those_of_the_network_and_of_text_encoders() -> None:
    tensors = {"unet.down_blocks.0.w.weight": (4, 4, 3, 3), "text_encoder.fc.weight": (4, 4), "unet.bias": (4,)}
    network, text = split_layers(tensors, spec_of("sd1x"))
    assert network == {"down_blocks.0.w": (4, 4, 3, 3)} and text == {"text_encoder.fc": (4, 4)}
    assert split_layers({"mid.weight": (2, 2)}, specs()["sd1x"]) == ({"mid": (2, 2)}, {})


def test_frozen_text_encoders_under_an_adapter_are_not_quantised() -> None:
    tensors = {"unet.w.weight": (100, 100), "text_encoder.w.weight": (10, 100)}
    options = options_with(model_family="sd1x", base_model_precision="int8-quanto", train_text_encoder=True, **LORA)
    assert frozen_network_bytes(options, spec_of("sd1x"), 11_000, tensors) == int(10_000 * 1.01 + 1_000 * 4)
    assert frozen_network_bytes(options, specs()["sd1x"], 10_000, None) == int(10_000 * 1.01)


def test_validate_counts_the_text_encoders_and_tokens_in_place_of_embeddings(training: Training) -> None:
    frozen, trained = report_of(training, train_text_encoder="false"), report_of(training)
    assert frozen.errors == trained.errors == []
    own = sum(weight.numel() for name, weight in trainable_of("sdxl").network.named_parameters() if name.startswith("text_encoder"))
    assert trained.understood["model"]["parameters"] - frozen.understood["model"]["parameters"] == own
    before, after = (memory_of_training(report.understood)["bytes"] for report in (frozen, trained))
    assert after >= before + 16 * own
    assert trained.understood["disk"]["checkpoint_bytes"] == frozen.understood["disk"]["checkpoint_bytes"] + 12 * own
    assert trained.understood["disk"]["caches_bytes"] < frozen.understood["disk"]["caches_bytes"]


def adapter_file(folder: Path, name: str = "sd1x", **values: Any) -> Path:
    trainable_of(name, **{**LORA, **values}).write_result(folder, 1)
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("lora_format", ["diffusers", "comfyui"])
def test_validate_and_the_engine_take_an_adapter_of_text_encoders_to_start_from(training: Training, lora_format: str) -> None:
    file = adapter_file(training.home / "adapter", lora_format=lora_format)
    assert report_of(training, "sd1x", init_lora=file, **LORA).errors == []
    (problem,) = report_of(training, "sd1x", init_lora=file, train_text_encoder="false", **LORA).errors
    assert problem.option == "init_lora"


def test_validate_refuses_an_adapter_that_lacks_the_text_encoder(training: Training) -> None:
    file = adapter_file(training.home / "adapter")
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({key: tensor for key, tensor in load_file(file).items() if key.startswith("unet.")}, file, metadata)
    (problem,) = report_of(training, "sd1x", init_lora=file, **LORA).errors
    assert problem.option == "init_lora" and "lacks 12 of the" in problem.message


def test_validate_reports_targets_that_match_the_text_encoder_alone(training: Training) -> None:
    (problem,) = report_of(training, "sd1x", peft_lora_target_modules='["q_proj"]', **LORA).errors
    assert (problem.option, problem.code) == ("peft_lora_target_modules", "nothing_matched")
    assert "self_attn" not in problem.expected

"""Adapters that change text encoders: their files load in diffusers, here again, and have the keys of ComfyUI and kohya's tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.params import first_fast, often
from tests.trainer_engine.families.stable_diffusion.test_text_encoder_runs import RESULT, run
from tests.trainer_engine.families.stable_diffusion.test_text_encoders import (
    ENCODERS,
    LORA,
    PIPELINES,
    family_of,
    our_loss,
    pipeline_of,
    their_loss,
)
from trainer_engine.adapters.build import make_trainable
from trainer_engine.contract.errors import InvalidOptions
from trainer_engine.export.command import ExportRequest, export

KOHYA = {"sd1x": ["lora_te_"], "sd2x": ["lora_te_"], "sdxl": ["lora_te1_", "lora_te2_"]}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "out_proj"}
FORMATS = ["diffusers", "comfyui"]


def trained(place: Path, name: str, **options: Any) -> Path:
    """The adapter file of a run at a rate that changes the output."""
    result = run(place, name, **{**LORA, "learning_rate": 0.02, "max_train_steps": 3, **options})
    assert result.code == 0
    return result.output_dir / RESULT


@torch.no_grad()
def their_number(name: str, file: Path | None = None) -> float:
    """The loss of diffusers' own pipeline with the adapter."""
    pipeline = pipeline_of(name)
    if file is not None:
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    prediction_type = pipeline.scheduler.config.prediction_type
    return float(their_loss(pipeline, prediction_type, 0))


@torch.no_grad()
def our_number(name: str, file: Path) -> float:
    family = family_of(name, **LORA, init_lora=str(file))
    network = make_trainable(family, None).network
    return float(our_loss(family, network.eval()))


@pytest.mark.parametrize("name", often(PIPELINES))
@pytest.mark.parametrize("lora_format", FORMATS)
def test_an_adapter_gives_the_same_output_in_diffusers_and_here(tmp_path: Path, name: str, lora_format: str) -> None:
    file = trained(tmp_path, name, lora_format=lora_format)
    with_adapter = their_number(name, file)
    assert our_number(name, file) == pytest.approx(with_adapter, rel=1e-5)
    assert with_adapter != pytest.approx(their_number(name), rel=1e-3)


@pytest.mark.parametrize("name", often(PIPELINES))
def test_an_adapter_file_has_the_keys_of_each_text_encoder(tmp_path: Path, name: str) -> None:
    file = trained(tmp_path, name)
    keys = load_file(file).keys()
    assert {key.split(".")[0] for key in keys} == {"unet", *ENCODERS[name]}
    for encoder in ENCODERS[name]:
        modules = {key.removeprefix(f"{encoder}.").partition(".lora_")[0] for key in keys if key.startswith(f"{encoder}.")}
        layers = {f"text_model.encoder.layers.{layer}.self_attn.{projection}" for layer in range(3) for projection in PROJECTIONS}
        assert modules == layers
    with safe_open(file, framework="pt") as opened:
        stated = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert all(stated[f"{encoder}.lora_alpha"] == 2 and stated[f"{encoder}.r"] == 4 for encoder in ENCODERS[name])
    assert set(stated["text_encoder.target_modules"]) == PROJECTIONS


@pytest.mark.parametrize("name", often(PIPELINES))
def test_flat_keys_are_those_of_kohya(tmp_path: Path, name: str) -> None:
    keys = load_file(trained(tmp_path, name, lora_format="comfyui")).keys()
    assert {key.partition(".")[2] for key in keys} == {"lora_down.weight", "lora_up.weight", "alpha"}
    for prefix in KOHYA[name]:
        modules = {key.partition(".")[0] for key in keys if key.startswith(prefix)}
        layers = {f"{prefix}text_model_encoder_layers_{layer}_self_attn_{one}" for layer in range(3) for one in PROJECTIONS}
        assert modules == layers
    assert all(key.startswith((*KOHYA[name], "lora_unet_")) for key in keys)


@pytest.mark.parametrize("lora_format", FORMATS)
@pytest.mark.parametrize("form", first_fast(["comfyui", "diffusers", "merged"]))
def test_an_export_keeps_the_text_encoders(tmp_path: Path, lora_format: str, form: str) -> None:
    file = trained(tmp_path, "sdxl", lora_format=lora_format)
    output = tmp_path / ("merged" if form == "merged" else "exported.safetensors")
    request = ExportRequest(adapter=file, form=form, output=output, base=None, model_family=None, strength=1.0, dtype="float32")
    [line] = export(request)
    assert form != "diffusers" or "pipeline.load_lora_weights(folder, weight_name=file)" in line
    if form == "merged":
        with torch.no_grad():
            found = float(their_loss(pipeline_of("sdxl", output), "epsilon", 0))
    else:
        found = their_number("sdxl", output)
    assert found == pytest.approx(their_number("sdxl", file), rel=1e-4)


def test_an_adapter_without_text_encoders_does_not_start_a_run_that_trains_them(tmp_path: Path) -> None:
    file = trained(tmp_path, "sd1x", train_text_encoder=False)
    with pytest.raises(InvalidOptions, match="lacks 12 of the"):
        our_number("sd1x", file)


def test_the_card_of_an_adapter_names_the_rate_and_the_node(tmp_path: Path) -> None:
    card = (trained(tmp_path, "sd1x", lora_format="comfyui", text_encoder_lr=1e-5).parent / "README.md").read_text()
    assert "learning rate of the text encoders: 1e-05" in card and "(model and CLIP)" in card

"""Distilled weights are recognised by their flavour, their name and their configurations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with, tiny_model, tiny_pixart
from tests.helpers.tiny_run import train_here
from trainer_engine.config.families import find_spec
from trainer_engine.config.rules.noise_schedule import DISTILLED, distillation_problems
from trainer_engine.contract.errors import Level, Problem
from trainer_engine.contract.events import Notification, Severity
from training.preflight.model_files import weights_problems

ASSISTANT = "ostris/FLUX.1-schnell-training-adapter"


def problems(
    family: str,
    scheduler: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    pipeline: dict[str, Any] | None = None,
    **values: Any,
) -> list[Problem]:
    chosen = options_with(**{"model_family": family, "pretrained_model_name_or_path": None, "model_type": "lora", **values})
    spec = find_spec(family)
    assert spec is not None
    return list(distillation_problems(chosen, spec, scheduler=scheduler or {}, network=network or {}, pipeline=pipeline or {}))


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("sdxl", "stabilityai/sdxl-turbo"),
        ("sdxl", "ByteDance/SDXL-Lightning"),
        ("sdxl", "SG161222/RealVisXL_V4.0_Lightning"),
        ("sdxl", "/models/dreamshaperXL_v21TurboDPMSDE.safetensors"),
        ("sdxl", "/models/sd_xl_turbo_1.0.safetensors"),
        ("sd1x", "SimianLuo/LCM_Dreamshaper_v7"),
        ("sd1x", "ByteDance/Hyper-SD"),
        ("sd2x", "stabilityai/sd-turbo"),
        ("pixart_sigma", "PixArt-alpha/PixArt-LCM-XL-2-1024-MS"),
        ("wan", "lightx2v/Wan2.1-T2V-14B-StepDistill-CfgDistill-Diffusers"),
        ("wan", "FastVideo/FastWan2.1-T2V-1.3B-Diffusers"),
        ("flux", "some-org/my-schnell-copy"),
    ],
)
def test_a_name_of_distilled_weights_is_a_warning_that_names_the_base(family: str, name: str) -> None:
    (found,) = problems(family, pretrained_model_name_or_path=name)
    assert (found.level, found.option, found.code, found.got) == (Level.WARNING, "pretrained_model_name_or_path", DISTILLED, name)
    spec = find_spec(family)
    assert spec is not None
    assert spec.distillation is not None
    assert spec.distillation.base in found.hint


@pytest.mark.parametrize(
    ("family", "name"),
    [
        *((family, None) for family in ("sdxl", "sd1x", "sd2x", "pixart_sigma", "wan", "flux")),
        ("sdxl", "someone/turbulence"),
        ("sdxl", "/turbo/lightning/base.safetensors"),
        ("wan", "Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        ("flux", "black-forest-labs/FLUX.1-dev"),
    ],
)
def test_other_weights_are_accepted_without_a_warning(family: str, name: str | None) -> None:
    assert problems(family, pretrained_model_name_or_path=name) == []


def test_weights_that_were_trained_out_of_distilled_ones_are_accepted() -> None:
    without_guidance = {"guidance_embeds": False}
    assert problems("flux", network=without_guidance, pretrained_model_name_or_path="/models/mine", model_flavour="libreflux") == []
    assert problems("flux", network=without_guidance, pretrained_model_name_or_path="/models/mine", model_flavour="dev") != []


@pytest.mark.parametrize(
    ("family", "where", "content"),
    [
        ("sdxl", "scheduler", {"_class_name": "LCMScheduler", "beta_start": 0.00085}),
        ("sdxl", "scheduler", {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}),
        ("sd1x", "network", {"time_cond_proj_dim": 256}),
        ("pixart_sigma", "scheduler", {"_class_name": "LCMScheduler"}),
        ("flux", "network", {"guidance_embeds": False}),
        ("flux2", "pipeline", {"is_distilled": True}),
    ],
)
def test_a_configuration_of_distilled_weights_is_recognised(family: str, where: str, content: dict[str, Any]) -> None:
    (found,) = problems(family, **{where: content}, pretrained_model_name_or_path="/models/mine")
    assert found.code == DISTILLED
    assert f"the {where} has {next(iter(content))}" in found.message


@pytest.mark.parametrize(
    ("family", "where", "content"),
    [
        ("sdxl", "scheduler", {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "leading"}),
        ("sd1x", "network", {"time_cond_proj_dim": None}),
        ("flux", "network", {"guidance_embeds": True}),
        ("wan", "network", {"guidance_embeds": False}),
        ("flux2", "pipeline", {"is_distilled": False}),
    ],
)
def test_a_usual_configuration_is_no_distillation(family: str, where: str, content: dict[str, Any]) -> None:
    assert problems(family, **{where: content}, pretrained_model_name_or_path="/models/mine") == []


def test_schnell_is_trained_with_its_assistant_and_warned_about_without_one() -> None:
    assert options_with(model_family="flux", model_flavour="schnell").adapter.assistant_lora_path == ASSISTANT
    assert problems("flux", model_flavour="schnell") == []
    (found,) = problems("flux", model_flavour="schnell", disable_assistant_lora=True)
    assert found.option == "model_flavour"
    assert f"assistant_lora_path={ASSISTANT}" in found.hint and "FLUX.1-dev" in found.hint
    assert [one.code for one in problems("flux", model_flavour="schnell", model_type="full")] == [DISTILLED], (
        "a full fine-tune has no adapter"
    )


def test_validate_reads_what_the_index_of_a_pipeline_on_this_machine_states(tmp_path: Path) -> None:
    place = shutil.copytree(tiny_model("flux2"), tmp_path / "mine")
    options = options_with(model_family="flux2", pretrained_model_name_or_path=str(place), model_type="lora")
    spec = find_spec("flux2")
    assert spec is not None
    index = json.loads((place / "model_index.json").read_text())
    for is_distilled in (False, True):
        (place / "model_index.json").write_text(json.dumps({**index, "is_distilled": is_distilled}))
        assert [one.code for one in weights_problems(options, spec, tmp_path)] == [DISTILLED] * is_distilled
    for broken in ("[]", "no JSON"):
        (place / "model_index.json").write_text(broken)
        assert list(weights_problems(options, spec, tmp_path)) == []


def test_a_network_of_its_own_is_judged_without_the_scheduler_of_the_base() -> None:
    lcm = {"_class_name": "LCMScheduler"}
    assert problems("sdxl", scheduler=lcm, pretrained_unet_model_name_or_path="/models/plain") == []
    (found,) = problems("sdxl", pretrained_unet_model_name_or_path="some-org/lcm-sdxl")
    assert found.option == "pretrained_unet_model_name_or_path"


def test_the_preflight_reads_the_configurations_of_a_folder(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_pixart(), tmp_path / "mine"))
    spec = find_spec("pixart_sigma")
    assert spec is not None
    options = options_with(pretrained_model_name_or_path=str(copy))
    assert list(weights_problems(options, spec, tmp_path)) == []
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "LCMScheduler"}))
    assert [one.code for one in weights_problems(options, spec, tmp_path)] == [DISTILLED]
    flux = find_spec("flux")
    assert flux is not None
    shaped = options_with(model_family="flux", pretrained_model_name_or_path=str(tiny_model("flux", flavour="schnell")))
    assert [one.code for one in weights_problems(shaped, flux, tmp_path)] == [DISTILLED]


def test_the_engine_warns_too_since_it_may_have_downloaded_the_weights(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_pixart(), tmp_path / "pixart-lcm"))
    run = train_here(tmp_path, model=str(copy), max_train_steps=1)
    (warning,) = [event for event in run.heard.of(Notification) if event.code == DISTILLED]
    assert warning.severity is Severity.WARNING
    assert "has the word lcm" in warning.message and "PixArt-Sigma-XL-2-1024-MS" in warning.message
    usual = train_here(tmp_path / "usual", max_train_steps=1)
    assert [event for event in usual.heard.of(Notification) if event.code == DISTILLED] == []

"""Previews of images while they are generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from tests.helpers.models import tiny_family, tiny_model
from tests.helpers.tiny_run import HereRun, train_here
from trainer_engine.config.options.validation import ValidationOptions
from trainer_engine.contract.events import ErrorEvent, ImageEvent, Severity
from trainer_engine.tiny_models.autoencoders import build_preview_decoder
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from trainer_engine.validation.previews import PreviewDecoder, is_shown

DRAWING: dict[str, Any] = {
    "validation_disable": False,
    "validation_prompt": "a night bench",
    "validation_disable_unconditional": True,
    "validation_resolution": "64x96",
    "validation_num_inference_steps": 6,
    "disable_benchmark": True,
    "max_train_steps": 1,
    "validation_preview": True,
    "validation_preview_steps": 4,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds PixArt's preview decoder, and no network."""
    home = tmp_path / "hf"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "decoder"
    build_preview_decoder().save_pretrained(folder)
    place_in_hub_cache(folder, "madebyollin/taesdxl", home)
    return home


def levels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def image_events(run: HereRun, kind: str) -> list[ImageEvent]:
    return [event for event in run.heard.of(ImageEvent) if event.validation_type == kind]


@pytest.mark.parametrize(
    ("every", "steps", "shown"), [(4, 20, [1, 5, 9, 13, 17, 20]), (1, 3, [1, 2, 3]), (5, 4, [1, 4]), (7, 8, [1, 8]), (3, 1, [1])]
)
def test_the_first_step_is_shown_and_every_nth_after_it_and_the_last(every: int, steps: int, shown: list[int]) -> None:
    options = ValidationOptions(validation_preview=True, validation_preview_steps=every)
    assert [step for step in range(1, steps + 1) if is_shown(step, steps, options)] == shown
    assert not is_shown(1, steps, ValidationOptions(validation_preview_steps=every))


def test_previews_arrive_while_the_image_is_generated(hub: Path, tmp_path: Path) -> None:
    run = train_here(tmp_path, **DRAWING)
    shown = image_events(run, "intermediary")
    assert [event.step_label for event in shown] == ["1/6", "5/6", "6/6"]
    assert [event.step for event in shown] == [1, 5, 6]
    first = shown[0]
    assert first.title == "Validation (step 1/6): validation"
    assert (first.body, first.prompt) == ("a night bench", "a night bench")
    assert first.resolution == (64, 96)
    timesteps = [event.timestep for event in shown]
    assert all(timestep is not None and 0 <= timestep <= 1000 for timestep in timesteps)
    assert timesteps == sorted(timesteps, reverse=True)
    for event in shown:
        path = Path(event.images[0].file)
        assert path.is_file()
        assert path.parent.name == "media"
        with Image.open(path) as image:
            assert image.size == (64, 96)
    (finished,) = image_events(run, "final")
    assert finished.step_label == "6/6"


def test_previews_change_neither_the_image_nor_the_training(hub: Path, tmp_path: Path) -> None:
    plain = train_here(tmp_path / "plain", **{**DRAWING, "validation_preview": False, "max_train_steps": 2})
    shown = train_here(tmp_path / "shown", **{**DRAWING, "max_train_steps": 2})
    assert plain.files().keys() == shown.files().keys()
    assert all(content == shown.files()[name] for name, content in plain.files().items() if name.endswith(".safetensors"))
    name = "validation_images/step_2_validation_0_64x96.png"
    assert (plain.output_dir / name).read_bytes() == (shown.output_dir / name).read_bytes()


def test_a_missing_decoder_is_reported_once_and_the_run_continues(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    run = train_here(tmp_path, **{**DRAWING, "max_train_steps": 2, "validation_step_interval": 1})
    assert run.step == 2
    assert not image_events(run, "intermediary")
    assert len(image_events(run, "final")) == 2
    (warning,) = [event for event in run.heard.of(ErrorEvent) if event.code == "previews_failed"]
    assert warning.severity is Severity.WARNING
    assert "taesdxl" in warning.message


def test_latents_that_do_not_fit_the_decoder_are_reported_too(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    build_preview_decoder(16).save_pretrained(folder)
    place_in_hub_cache(folder, "madebyollin/taesdxl", hub)
    run = train_here(tmp_path, **DRAWING)
    assert run.step == 1
    assert [event.code for event in run.heard.of(ErrorEvent)] == ["previews_failed"]


def test_a_decoder_that_makes_no_picture_costs_the_previews_alone(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    AutoencoderTiny(out_channels=1, num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4).save_pretrained(folder)
    place_in_hub_cache(folder, "madebyollin/taesdxl", hub)
    run = train_here(tmp_path, **DRAWING)
    assert [event.code for event in run.heard.of(ErrorEvent)] == ["previews_failed"]
    assert len(image_events(run, "final")) == 1


def test_the_decoder_shows_what_the_autoencoder_shows(hub: Path) -> None:
    family = tiny_family()
    colours = torch.tensor([[0.5, -0.5, 0.0], [-0.8, 0.2, 0.9]])
    pixels = colours.view(2, 3, 1, 1).repeat(1, 1, 64, 64)
    for wanted, latents in zip(colours, family.encode_images(pixels), strict=True):
        image = PreviewDecoder("madebyollin/taesdxl", family.devices, family.options.autoencoder).decode(latents[None])
        middle = torch.tensor(image.getpixel((32, 32))) / 127.5 - 1
        assert torch.allclose(middle, wanted, atol=0.1)


WAN: dict[str, Any] = {
    **DRAWING,
    "model_family": "wan",
    "validation_resolution": "96x64",
    "validation_num_inference_steps": 3,
    "validation_preview_steps": 2,
}


@pytest.mark.parametrize("frames", [1, 5])
def test_wans_own_autoencoder_shows_the_first_frame_of_each_step(tmp_path: Path, frames: int) -> None:
    run = train_here(tmp_path, model=str(tiny_model("wan")), validation_num_video_frames=frames, **WAN)
    assert not run.heard.of(ErrorEvent)
    shown, (finished,) = image_events(run, "intermediary"), image_events(run, "final")
    assert [event.step_label for event in shown] == ["1/3", "3/3"]
    assert [(len(event.images), event.videos) for event in shown] == [(1, [])] * 2
    first, last = (levels(Path(event.images[0].file)) for event in shown)
    assert first.shape == last.shape == (64, 96, 3)
    assert np.abs(first - last).mean() > 1, "each step shows something else"
    result = Path((finished.videos or finished.images)[0].file)
    apart = np.abs(last - levels(result))
    # The last step is the result itself; a GIF has 256 colours.
    assert apart.max() == 0 if frames == 1 else apart.mean() < 12


def test_previews_of_wan_change_neither_the_image_nor_the_training(tmp_path: Path) -> None:
    model = str(tiny_model("wan"))
    plain = train_here(tmp_path / "plain", model=model, **{**WAN, "validation_preview": False})
    shown = train_here(tmp_path / "shown", model=model, **WAN)
    assert all(content == shown.files()[name] for name, content in plain.files().items() if name.endswith(".safetensors"))
    name = "validation_images/step_1_validation_0_96x64.png"
    assert (plain.output_dir / name).read_bytes() == (shown.output_dir / name).read_bytes()


def test_the_decoder_of_this_project_loads_as_the_real_one_does(tmp_path: Path) -> None:
    build_preview_decoder(16, shift=0.1159).save_pretrained(tmp_path)
    assert isinstance(AutoencoderTiny.from_pretrained(tmp_path), AutoencoderTiny)

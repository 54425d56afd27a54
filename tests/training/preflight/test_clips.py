"""The estimates of memory and disk count the frames of clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clips import needs_pyav
from tests.helpers.tiny_run import tiny_options
from tests.helpers.video_files import write_video
from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.families import specs
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.parse import parse_options
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport
from training.preflight.activations import activation_numbers
from training.preflight.cache_stock import LATENTS, cache_uses

WAN = specs()["wan"]
PARAMETERS = WAN.parameters[WAN.default_flavour]


def examined(place: Path, frames: int) -> tuple[TrainingOptions, Dataloader, DatasetReport]:
    if not (place / "clips").exists():
        write_video(place / "clips" / "a.mp4", 21)
    options = parse_options(tiny_options(place, model="nobody/nothing", model_family="wan", train_batch_size=1))
    entry: dict[str, Any] = {"id": "clips", "dataset_type": "video", "instance_data_dir": str(place / "clips"), "resolution": 64}
    dataloader, _ = parse_dataloader([{**entry, "video": {"num_frames": frames}}], options)
    return options, dataloader, examine(dataloader, options, WAN)


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (4, 1), (5, 2), (81, 21), (149, 38)])
def test_latents_have_a_frame_for_the_first_and_one_for_each_stride(frames: int, latent_frames: int) -> None:
    assert WAN.latent_frames(frames) == latent_frames


def test_only_families_of_clips_have_media_beside_images() -> None:
    assert WAN.clip_media == ("clip",)
    assert [name for name, spec in specs().items() if spec.clip_media] == ["wan"]
    assert all(spec.frame_stride == 1 for spec in specs().values() if spec.sampling.clips is None)


@needs_pyav
def test_activations_grow_with_the_frames_of_the_latents(tmp_path: Path) -> None:
    found = {}
    for frames in (1, 9, 21):
        options, _, report = examined(tmp_path, frames)
        found[frames] = activation_numbers(options, PARAMETERS, report, WAN, None).total
    assert found[9] == pytest.approx(3 * found[1], rel=0.02)
    assert found[21] == pytest.approx(6 * found[1], rel=0.02)


@needs_pyav
def test_the_cache_of_latents_takes_the_frames_of_the_latents(tmp_path: Path) -> None:
    needed = {}
    for frames in (1, 9, 21):
        options, dataloader, report = examined(tmp_path, frames)
        [use] = [use for use in cache_uses(options, WAN, dataloader, report, on_cpu=True) if use.what == LATENTS]
        needed[frames] = use.bytes
    assert needed[1] == 16 * 8 * 8 * 4
    assert (needed[9], needed[21]) == (3 * needed[1], 6 * needed[1])

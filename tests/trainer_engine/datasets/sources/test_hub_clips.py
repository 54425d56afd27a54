"""Sets of clips of the hub: rows of parquet files that hold clips, and repositories of video files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clips import moving_square, needs_pyav
from tests.helpers.dataset_hub import DatasetHub, png, shard, speak_to
from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import train_here
from tests.helpers.video_files import write_video
from tests.trainer_engine.datasets.sources.test_huggingface import datasets, examined, hub, names
from trainer_engine.contract.errors import errors_in
from trainer_engine.media import encode_gif

pytestmark = needs_pyav
__all__ = ["hub"]
CLIPS: dict[str, Any] = {"dataset_name": "owner/clips", "dataset_type": "video", "resolution": 64, "video": {"num_frames": 5}}


def clip(place: Path, frames: int) -> bytes:
    return write_video(place / "made" / f"{frames}.mp4", frames).read_bytes()


def rows_of(place: Path, column: str = "video") -> bytes:
    cells = [{"bytes": clip(place, frames), "path": f"clip_{frames}.mp4"} for frames in (3, 5, 9)]
    return shard([{column: cell, "caption": f"a square, number {number}"} for number, cell in enumerate(cells)])


def test_rows_that_hold_clips_are_measured_and_have_their_captions(hub: DatasetHub, tmp_path: Path) -> None:
    hub.repo("owner/clips", {"data/train-00000-of-00001.parquet": rows_of(tmp_path)})
    report = examined(tmp_path, family="wan", **CLIPS)
    assert errors_in(report.problems) == []
    assert names(report) == ["train-00000/000001.mp4", "train-00000/000002.mp4"]
    assert [(sample.frames, sample.captions) for sample in report.sets[0].samples] == [
        (5, ("a square, number 1",)),
        (5, ("a square, number 2",)),
    ]
    [short] = report.sets[0].left_out
    assert (short.name, short.reason) == ("train-00000/000000.mp4", "it has 3 frames; min_frames=5")


@pytest.mark.parametrize("fields", [{"video_column": "movie"}, {"image_column": "movie"}])
def test_a_column_of_another_name_is_read_if_it_is_named(hub: DatasetHub, tmp_path: Path, fields: dict[str, str]) -> None:
    hub.repo("owner/clips", {"data/train-00000-of-00001.parquet": rows_of(tmp_path, "movie")})
    assert len(names(examined(tmp_path, family="wan", **CLIPS, **fields))) == 2


def test_a_set_of_clips_names_the_column_that_is_not_there(hub: DatasetHub, tmp_path: Path) -> None:
    hub.repo("owner/clips", {"data/train-00000-of-00001.parquet": rows_of(tmp_path, "movie")})
    [problem] = errors_in(examined(tmp_path, family="wan", **CLIPS).problems)
    assert (problem.option, problem.code) == ("dataloader[0].video_column", "column_not_found") and "movie" in problem.expected


def test_a_repository_of_video_files_trains(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"train/clip_{frames}.mp4": clip(tmp_path, frames) for frames in (5, 9)}
    files |= {"train/moving.gif": encode_gif(moving_square(6), 10), "train/still.png": png(1)}
    hub.repo("owner/clips", files)
    speak_to(hub, tmp_path / "hf", monkeypatch)
    fields = {**CLIPS, "caption_strategy": "instanceprompt", "instance_prompt": "a square"}
    report = examined(tmp_path, family="wan", **fields)
    assert [name.rpartition("/")[2] for name in names(report)] == ["clip_5.mp4", "clip_9.mp4", "moving.gif"]
    run = train_here(
        tmp_path, datasets=datasets(tmp_path, **fields), model_family="wan", model=str(tiny_model("wan")), max_train_steps=1, resolution=64
    )
    assert run.code == 0

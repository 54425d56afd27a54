"""Sets of clips as training sees them: which clips are used, how many of their frames, in which buckets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.clips import moving_square, needs_pyav
from tests.helpers.tiny_run import tiny_options
from tests.helpers.video_files import cut, turn, write_video
from trainer_engine.caches.decoding import pixels_made_from, sample_pixels
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import errors_in
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.summary import summarise

pytestmark = needs_pyav


def clips_in(folder: Path, **video: Any) -> dict[str, Any]:
    return {"id": "clips", "dataset_type": "video", "instance_data_dir": str(folder), "resolution": 64, "video": {"num_frames": 5, **video}}


def report_of(*entries: dict[str, Any], takes_references: bool = False, **options: Any) -> DatasetReport:
    usual = {"model": "nobody/nothing", "model_family": "wan", "train_batch_size": 1}
    chosen = parse_options(tiny_options(Path("/out"), **usual, **options))
    dataloader, problems = parse_dataloader(list(entries), chosen)
    assert errors_in(problems) == []
    spec = find_spec("wan")
    assert spec is not None
    flavours = frozenset(spec.flavours) if takes_references else spec.takes_references
    return examine(dataloader, chosen, replace(spec, takes_references=flavours))


@pytest.mark.parametrize("kind", ["reference_strict", "reference_loose"])
def test_references_of_clips_are_clips_with_their_frames_or_images(tmp_path: Path, kind: str) -> None:
    folder = lengths_in(tmp_path / "clips", 9, 10, 11)
    write_video(tmp_path / "refs" / "of_09.mp4", 9)
    write_video(tmp_path / "refs" / "of_10.mp4", 3)
    Image.new("RGB", (96, 64)).save(tmp_path / "refs" / "of_11.png")
    refs = {"id": "refs", "conditioning_type": kind, "instance_data_dir": str(tmp_path / "refs")}
    report = report_of({**clips_in(folder), "conditioning_data": "refs"}, refs, takes_references=True)
    found = {sample.name: sample.references[0].sample for sample in report.sets[0].samples}
    assert {name: (one.frames, one.is_clip) for name, one in found.items()} == {"of_09.mp4": (5, True), "of_11.mp4": (1, False)}
    [problem] = [problem for problem in report.problems if problem.code == "broken_reference"]
    assert "of_10.mp4" in problem.message and "it has 3 frames" in problem.message


def lengths_in(folder: Path, *lengths: int) -> Path:
    for length in lengths:
        write_video(folder / f"of_{length:02}.mp4", length)
    return folder


def test_short_clips_are_left_out_and_long_ones_are_cut(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 3, 5, 9, 20)
    report = report_of(clips_in(folder, max_frames=12))
    [found] = report.sets
    assert [(sample.name, sample.frames, sample.frame_rate) for sample in found.samples] == [("of_05.mp4", 5, 10.0), ("of_09.mp4", 5, 10.0)]
    assert {file.name: file.reason for file in found.left_out} == {
        "of_03.mp4": "it has 3 frames; min_frames=5",
        "of_20.mp4": "it has 20 frames; max_frames=12",
    }
    assert list(found.buckets) == ["1 (64x64) of 5 frames"]
    [note] = [problem for problem in report.problems if problem.code == "files_filtered"]
    assert "of_03.mp4" in note.message and "of_20.mp4" in note.message


def test_clips_of_many_lengths_have_buckets_of_their_own(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 5, 8, 9, 12, 20)
    [found] = report_of(clips_in(folder, bucket_strategy="resolution_frames")).sets
    assert [sample.frames for sample in found.samples] == [5, 5, 9, 9, 17]
    assert {bucket.frames: bucket.images for bucket in found.counts} == {5: 2, 9: 2, 17: 1}
    assert {bucket.title for bucket in found.counts} == set(found.buckets)
    [coarse] = report_of(clips_in(folder, bucket_strategy="resolution_frames", frame_interval=10)).sets
    assert [sample.frames for sample in coarse.samples] == [5, 5, 5, 9, 17]


def test_the_report_counts_frames_and_rates(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 5, 9)
    write_video(folder / "slow.mp4", 6, rate=5)
    summary = summarise(report_of(clips_in(folder, bucket_strategy="resolution_frames")))["datasets"][0]
    assert summary["frames"] == {"fewest": 5, "most": 9, "total": 19}
    assert summary["frame_rate"] == {"lowest": 5.0, "highest": 10.0}
    assert sorted(bucket["frames"] for bucket in summary["buckets"]) == [5, 9]
    Image.new("RGB", (96, 96)).save(folder / "still.png")
    images = {**clips_in(folder), "dataset_type": "image"}
    del images["video"]
    plain = summarise(report_of(images))["datasets"][0]
    assert "frames" not in plain and "frame_rate" not in plain and "frames" not in plain["buckets"][0]


def test_only_the_first_frames_are_decoded_and_cropped_together(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 9)
    [sample] = report_of(clips_in(folder)).sets[0].samples
    pixels = sample_pixels(sample, seed=0)
    assert pixels.shape == (3, 5, 64, 64) and sample.resized == (96, 64)
    left, _ = crop_window(sample, 0)
    shown = torch.stack([torch.from_numpy(np.array(frame)) for frame in moving_square(5)]).permute(3, 0, 1, 2)
    assert (pixels - (shown.float() / 127.5 - 1)[..., left : left + 64]).abs().mean() < 0.1
    assert (pixels[:, 0] - pixels[:, 4]).abs().mean() > 0.01, "the square moves"


def test_the_address_of_latents_names_the_frames_and_not_the_place(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 9)
    [short] = report_of(clips_in(folder)).sets[0].samples
    [long] = report_of(clips_in(folder, num_frames=9)).sets[0].samples
    (tmp_path / "elsewhere").mkdir()
    moved = lengths_in(tmp_path / "elsewhere" / "clips", 9)
    [same] = report_of(clips_in(moved)).sets[0].samples
    assert pixels_made_from(short, "sha", 0) == pixels_made_from(same, "sha", 0)
    assert pixels_made_from(short, "sha", 0) == {**pixels_made_from(long, "sha", 0), "frames": 5}
    assert pixels_made_from(short, "sha", 0)["pixels"] == "clip 1"


def test_a_clip_that_lost_frames_since_it_was_measured_is_named(tmp_path: Path) -> None:
    [sample] = report_of(clips_in(lengths_in(tmp_path / "clips", 9))).sets[0].samples
    with pytest.raises(BrokenImage, match="only 9 frames can be decoded, and 12 are needed"):
        sample_pixels(sample._replace(frames=12), seed=0)


def test_broken_clips_and_files_of_other_kinds_are_each_named_once(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 5, 9)
    cut(write_video(folder / "cut.mp4", 9), 0.4)
    (folder / "empty.webm").write_bytes(b"")
    (folder / "old.wmv").write_bytes(b"anything")
    Image.new("RGB", (96, 96)).save(folder / "still.png")
    turn(write_video(folder / "upright.mp4", 5))
    report = report_of(clips_in(folder))
    [found] = report.sets
    assert [sample.name for sample in found.samples] == ["of_05.mp4", "of_09.mp4", "upright.mp4"]
    assert (found.samples[2].width, found.samples[2].height) == (64, 96)
    reasons = {file.name: file.reason for file in found.left_out}
    assert sorted(reasons) == ["cut.mp4", "empty.webm", "old.wmv", "still.png"]
    assert reasons["still.png"] == ".png files are trained on in a set of dataset_type image"
    assert reasons["old.wmv"] == ".wmv files are not supported"
    assert "damaged or cut off" in reasons["cut.mp4"] and "empty" in reasons["empty.webm"]


def test_a_set_without_a_long_clip_says_how_long_they_must_be(tmp_path: Path) -> None:
    report = report_of(clips_in(lengths_in(tmp_path / "clips", 3, 4)))
    [problem] = errors_in(report.problems)
    assert problem.code == "no_usable_images" and "min_frames=5" in problem.message and problem.expected == "at least one usable clip"
    (tmp_path / "none").mkdir()
    [problem] = errors_in(report_of(clips_in(tmp_path / "none")).problems)
    assert problem.code == "no_images" and "no clip file" in problem.message and "image" in problem.hint


def test_a_folder_of_both_gives_a_set_of_images_and_one_of_clips(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "both", 5)
    Image.new("RGB", (96, 96)).save(folder / "still.png")
    images = {"id": "stills", "instance_data_dir": str(folder), "resolution": 64}
    report = report_of(clips_in(folder), images)
    assert [[sample.name for sample in one.samples] for one in report.sets] == [["of_05.mp4"], ["still.png"]]
    assert [file.broken for file in report.sets[0].left_out] == [False] and report.sets[1].left_out == []
    assert not [problem for problem in report.problems if problem.code == "files_broken"]


def test_masks_of_clips_are_images_of_their_size(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 9)
    (tmp_path / "masks").mkdir()
    Image.new("L", (96, 64), 255).save(tmp_path / "masks" / "of_09.png")
    masks = {"id": "masks", "conditioning_type": "mask", "instance_data_dir": str(tmp_path / "masks")}
    report = report_of({**clips_in(folder), "conditioning_data": "masks"}, masks)
    [sample] = report.sets[0].samples
    assert errors_in(report.problems) == [] and sample.mask is not None
    assert (sample.mask.sample.frames, sample.mask.sample.is_clip) == (1, False)


def test_a_limit_of_samples_and_a_random_crop_are_the_same_every_time(tmp_path: Path) -> None:
    folder = lengths_in(tmp_path / "clips", 5, 6, 7, 8)
    entry = {**clips_in(folder), "max_num_samples": 2, "crop": True, "crop_style": "random", "crop_aspect": "square"}
    first, second = (report_of(entry).sets[0].samples for _ in range(2))
    assert first == second and len(first) == 2 and {sample.target for sample in first} == {(64, 64)}

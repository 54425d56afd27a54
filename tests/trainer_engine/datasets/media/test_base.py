"""The table of media, and the crops of clips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from tests.helpers.samples import sample_of
from trainer_engine.caches import decoding
from trainer_engine.caches.decoding import batches_by_size, pixels_made_from, sample_pixels
from trainer_engine.datasets import crops, index
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.media import base
from trainer_engine.datasets.media.base import BrokenImage, MediaFacts, Medium, is_of_another_kind, media, medium_of, suffixes_of
from trainer_engine.datasets.media.image import MEDIUM as IMAGE
from trainer_engine.datasets.samples import CropPlan, Sample
from trainer_engine.datasets.sources.base import SourceFile
from trainer_engine.datasets.sources.local import LocalSource

SIZE, FRAMES = (96, 64), 3


def _frames(file: SourceFile) -> Iterator[Image.Image]:
    with file.open() as stream:
        for level in stream.read():
            yield Image.new("RGB", SIZE, (level, 0, 0))


def _measure(file: SourceFile) -> MediaFacts:
    if file.size_bytes > 10:
        raise BrokenImage(file.location, "it is too long")
    return MediaFacts(SIZE, frames=file.size_bytes, frame_rate=8.0)


CLIP = Medium(name="clip", suffixes=frozenset({".levels"}), is_clip=True, pixel_rule="levels 1", measure=_measure, frames=_frames)
"""A frame of one colour for each byte of a file."""


@pytest.fixture
def with_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table with one kind of media more."""

    def of(name: str, *, is_clip: bool = False) -> Medium:
        return CLIP if name.endswith(".levels") else IMAGE

    for module in (crops, decoding, index):
        monkeypatch.setattr(module, "medium_of", of)
    monkeypatch.setattr(base, "media", lambda: {"image": IMAGE, "clip": CLIP})
    monkeypatch.setattr(base, "_by_suffix", lambda *, is_clip: {**dict.fromkeys(IMAGE.suffixes, IMAGE), ".levels": CLIP})


def clip_in(folder: Path, name: str = "a.levels", levels: bytes = b"\x00\x80\xff") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(levels)
    return folder


def sample_from(folder: Path, target: tuple[int, int] = (64, 64)) -> Sample:
    Image.new("RGB", SIZE).save(folder / "size.png")
    still = sample_of(folder / "size.png", target=target)
    return still._replace(name="a.levels", size_bytes=FRAMES, frames=FRAMES, frame_rate=8.0)


def test_images_are_the_first_entry_of_the_table() -> None:
    assert media()["image"] is IMAGE and medium_of("deep.png/a.JPG") is IMAGE
    with pytest.raises(KeyError):
        medium_of("notes.txt")
    assert not IMAGE.suffixes & IMAGE.unsupported


def test_unsupported_formats_and_other_media_are_refused_with_a_reason(with_clips: None) -> None:
    images, clips = suffixes_of(["image"]), suffixes_of(["clip"])
    assert images.usable == IMAGE.suffixes and images.refused[".svg"] == ".svg files are not supported"
    assert ".levels" not in images.refused and ".levels" not in images.usable, "a set of images ignores clips"
    assert clips.usable == {".levels"} and clips.refused[".png"] == ".png files are trained on in a set of dataset_type image"
    assert suffixes_of(["image", "clip"]).usable == IMAGE.suffixes | {".levels"}


def test_two_media_that_share_a_suffix_or_a_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (replace(CLIP, suffixes=frozenset({".png"}), is_clip=False), replace(CLIP, name="image")):
        made = [ModuleType("one"), ModuleType("two"), ModuleType("helper")]
        made[0].MEDIUM, made[1].MEDIUM = IMAGE, other  # type: ignore[attr-defined]
        monkeypatch.setattr(base, "modules_in", lambda package, made=made: made)
        with pytest.raises(TypeError, match="'image'"):
            media.__wrapped__()


def test_a_suffix_of_images_and_clips_is_what_the_set_is() -> None:
    assert medium_of("a.gif").name == "image" and medium_of("a.gif", is_clip=True).name == "clip"
    assert medium_of("a.mp4").name == medium_of("a.mp4", is_clip=True).name == "clip"
    assert ".gif" in suffixes_of(["clip"]).usable and ".gif" in suffixes_of(["image"]).usable
    assert ".mp4" not in suffixes_of(["image"]).refused
    assert is_of_another_kind("a.PNG", ["clip"]) and not is_of_another_kind("a.gif", ["clip"])
    assert not is_of_another_kind("a.svg", ["clip"]) and not is_of_another_kind("a.mp4", ["clip"])


def test_only_a_few_frames_are_decoded_ahead() -> None:
    clip = Sample(
        LocalSource("/x"), "a.mp4", 1, 1, 64, 64, (64, 64), (64, 64), CropPlan("center", 1.0), "1", (), frames=81, frame_rate=16.0
    )
    still = clip._replace(frames=1, frame_rate=None)
    assert decoding._most_ahead([still], 8) == 11 and decoding._most_ahead([clip], 8) == 3
    assert decoding._most_ahead([clip] * 8, 8) == 1


def test_clips_are_measured_once_with_frames_and_rate(with_clips: None, tmp_path: Path) -> None:
    folder = clip_in(clip_in(tmp_path / "clips"), "long.levels", bytes(11))
    for opened in (2, 0):
        found = discover(LocalSource(str(folder)), media=["clip"], index_dir=tmp_path / "index")
        assert [(file.name, file.frames, file.frame_rate) for file in found.images] == [("a.levels", 3, 8.0)]
        assert [(file.name, file.reason) for file in found.left_out] == [("long.levels", "it is too long")]
        assert found.opened == opened


def test_the_pixels_of_a_clip_have_a_dimension_of_time(with_clips: None, tmp_path: Path) -> None:
    sample = sample_from(clip_in(tmp_path / "clips"))
    pixels = sample_pixels(sample, seed=0)
    assert pixels.shape == (3, FRAMES, 64, 64)
    assert torch.allclose(pixels[0, :, 5, 5], torch.tensor([-1.0, 128 / 127.5 - 1, 1.0]), atol=1e-6)
    clip_in(tmp_path / "clips", "b.levels", b"\x00")
    assert sample_pixels(sample._replace(frames=1, name="b.levels"), seed=0).shape == (3, 1, 64, 64)


def test_a_clip_that_changed_after_it_was_measured_is_refused(with_clips: None, tmp_path: Path) -> None:
    sample = sample_from(clip_in(tmp_path / "clips"))
    clip_in(tmp_path / "clips", levels=b"\x00\x80")
    with pytest.raises(BrokenImage, match="only 2 frames can be decoded, and 3 are needed"):
        sample_pixels(sample, seed=0)


def test_an_address_names_the_rule_of_the_medium(with_clips: None, tmp_path: Path) -> None:
    sample = sample_from(clip_in(tmp_path / "clips"))
    assert pixels_made_from(sample, "content", 0)["pixels"] == "levels 1"
    assert pixels_made_from(sample, "content", 0)["frames"] == 3
    still = pixels_made_from(sample._replace(name="size.png", frames=1, frame_rate=None), "content", 0)
    assert still == {"pixels": 2, "image": "content", "resized": [96, 64], "target": [64, 64], "window": [16, 0]}


def test_a_batch_holds_samples_with_pixels_of_one_shape(with_clips: None, tmp_path: Path) -> None:
    clip = sample_from(clip_in(tmp_path / "clips"))
    still, shorter = clip._replace(name="size.png", frames=1, frame_rate=None), clip._replace(frames=1)
    assert batches_by_size([clip, still, shorter, clip], batch_size=4) == [[clip, clip], [still], [shorter]]

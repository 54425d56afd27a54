"""Clips of a validation: their frames, their files and their events."""

from __future__ import annotations

import io
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.clips import decoded_gif, decoded_mp4, moving_square, needs_pyav
from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import HereRun, train_here
from trainer_engine.config.rules.clips import writes_mp4
from trainer_engine.contract.events import ErrorEvent, ImageEvent
from trainer_engine.media import attachments, encode_gif, encode_mp4, write_mp4, write_picture
from trainer_engine.validation.gather import GeneratedImages, unpack
from trainer_engine.validation.generate import ValidationImage

CLIPS: dict[str, Any] = {
    "model_family": "wan",
    "validation_disable": False,
    "validation_prompt": "a night bench",
    "validation_disable_unconditional": True,
    "validation_resolution": "96x64",
    "validation_num_inference_steps": 2,
    "validation_num_video_frames": 5,
    "disable_benchmark": True,
    "max_train_steps": 1,
}


def run_of_wan(place: Path, **options: Any) -> HereRun:
    return train_here(place, model=str(tiny_model("wan")), **{**CLIPS, **options})


def events_of(run: HereRun) -> list[ImageEvent]:
    assert not run.heard.of(ErrorEvent)
    return run.heard.of(ImageEvent)


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def areas(image: Image.Image) -> np.ndarray:
    """The mean colours of squares of 16 pixels, which palettes and H.264 keep."""
    return levels(image.reduce(16))


def test_frames_become_an_endless_gif(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 24), colour) for colour in ("red", "green", "blue")]
    path = write_picture(tmp_path, "clip", frames)
    assert path.name == "clip.gif"
    gif = decoded_gif(path)
    assert (len(gif.frames), gif.size) == (3, (32, 24))
    assert [frame.getpixel((5, 5)) for frame in gif.frames] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    with pytest.raises(ValueError, match="frame"):
        encode_gif([])
    assert io.BytesIO(encode_gif(frames[:1])).read(3) == b"GIF"


@pytest.mark.parametrize(("rate", "count", "seconds"), [(16, 17, 1.06), (12, 3, 0.25), (7.5, 5, 0.67), (60, 4, 0.08)])
def test_a_gif_lasts_as_long_as_its_frames_at_their_rate(tmp_path: Path, rate: float, count: int, seconds: float) -> None:
    gif = decoded_gif(write_picture(tmp_path, "clip", moving_square(count), frames_per_second=rate))
    assert len(gif.frames) == count
    assert gif.seconds == pytest.approx(seconds)


@needs_pyav
@pytest.mark.parametrize("rate", [16, 12.5, 24000 / 1001])
def test_an_mp4_file_has_every_frame_at_its_rate_and_in_its_colours(tmp_path: Path, rate: float) -> None:
    frames = moving_square(9)
    path = write_mp4(tmp_path, "clip", frames, rate)
    mp4 = decoded_mp4(path)
    assert (path.name, len(mp4.frames), mp4.size, mp4.codec) == ("clip.mp4", 9, (96, 64), "h264")
    assert mp4.rate == Fraction(rate).limit_denominator(1000)
    assert mp4.seconds == pytest.approx(9 / rate, rel=1e-3)
    for shown, frame in zip(mp4.frames, frames, strict=True):
        for place in ((10, 50), (80, 50)):  # away from edges, where a quarter of the colours is kept
            assert np.abs(np.subtract(shown.getpixel(place), frame.getpixel(place))).max() <= 4
        assert np.abs(levels(shown) - levels(frame)).mean() < 6


@needs_pyav
def test_the_index_of_an_mp4_file_precedes_its_frames() -> None:
    content = encode_mp4(moving_square(5), 16)
    assert content[4:8] == b"ftyp"
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@needs_pyav
def test_an_mp4_file_of_no_frames_or_odd_edges_is_refused() -> None:
    with pytest.raises(ValueError, match="frame"):
        encode_mp4([], 16)
    with pytest.raises(ValueError, match="33x32"):
        encode_mp4([Image.new("RGB", (33, 32))], 16)


def test_attachments_name_both_files_of_a_clip_and_an_image_alone() -> None:
    both = attachments(Path("/o/clip.gif"), Path("/o/clip.mp4"))
    assert list(both) == ["videos"]
    assert [(file.file, file.mime_type) for file in both["videos"]] == [("/o/clip.gif", "image/gif"), ("/o/clip.mp4", "video/mp4")]
    still = attachments(Path("/o/still.jpg"))
    assert [(file.file, file.mime_type) for file in still["images"]] == [("/o/still.jpg", "image/jpeg")]


def test_a_validation_writes_a_clip_as_a_gif_and_an_mp4_file(tmp_path: Path) -> None:
    run = run_of_wan(tmp_path)
    (event,) = events_of(run)
    stem = "step_1_validation_0_96x64"
    assert [(Path(file.file).name, file.mime_type) for file in event.videos] == [
        (f"{stem}.gif", "image/gif"),
        *([(f"{stem}.mp4", "video/mp4")] if writes_mp4() else []),
    ]
    assert (event.images, event.resolution, event.step_label) == ([], (96, 64), "2/2")
    gif = decoded_gif(Path(event.videos[0].file))
    assert (len(gif.frames), gif.size, gif.seconds) == (5, (96, 64), pytest.approx(0.31))
    folder = run.output_dir / "validation_images"
    assert sorted(path.name for path in folder.iterdir()) == sorted(Path(file.file).name for file in event.videos)


@needs_pyav
def test_both_files_of_a_clip_show_the_same_frames_at_the_rate_of_the_option(tmp_path: Path) -> None:
    (event,) = events_of(run_of_wan(tmp_path, framerate=10, validation_num_video_frames=9))
    gif, mp4 = decoded_gif(Path(event.videos[0].file)), decoded_mp4(Path(event.videos[1].file))
    assert (len(gif.frames), gif.size, gif.rate) == (len(mp4.frames), mp4.size, mp4.rate) == (9, (96, 64), 10)
    for one, other in zip(gif.frames, mp4.frames, strict=True):
        assert np.abs(areas(one) - areas(other)).max() <= 12


def test_a_clip_without_pyav_is_a_gif_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (event,) = events_of(run_of_wan(tmp_path))
    assert [Path(file.file).suffix for file in event.videos] == [".gif"]


@pytest.mark.parametrize("frames", [None, 1])
def test_one_frame_is_an_image(tmp_path: Path, frames: int | None) -> None:
    (event,) = events_of(run_of_wan(tmp_path, validation_num_video_frames=frames))
    assert event.videos == []
    assert [Path(file.file).name for file in event.images] == ["step_1_validation_0_96x64.png"]


def test_clips_change_nothing_in_training(tmp_path: Path) -> None:
    plain = run_of_wan(tmp_path / "plain", validation_disable=True, max_train_steps=2)
    shown = run_of_wan(tmp_path / "shown", max_train_steps=2, validation_step_interval=1)
    assert len(events_of(shown)) == 2
    assert plain.files().keys() == shown.files().keys()
    assert all(content == shown.files()[name] for name, content in plain.files().items() if name.endswith(".safetensors"))


def test_a_clip_of_another_process_comes_with_both_files(tmp_path: Path) -> None:
    gif, mp4 = (tmp_path / f"step_1_a_0_96x64{ending}" for ending in (".gif", ".mp4"))
    gif.write_bytes(b"GIF\n{}")
    mp4.write_bytes(b"\nmp4 is longer")
    clip = ValidationImage(
        path=gif, shortname="a", prompt="ä", resolution=(96, 64), index=0, seed=7, sampler_steps=2, label="ema", video=mp4
    )
    packed = GeneratedImages([clip]).pack()
    assert json.loads(packed.partition(b"\n")[0])["sizes"] == [6, 14]
    gif.unlink()
    mp4.unlink()
    assert list(unpack(packed).images) == [clip]
    assert (gif.read_bytes(), mp4.read_bytes()) == (b"GIF\n{}", b"\nmp4 is longer")

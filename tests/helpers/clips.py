"""Decodes the files of clips again, and says what a file without PyAV is."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image, ImageSequence

from trainer_engine.config.rules.clips import writes_mp4

needs_pyav = pytest.mark.skipif(not writes_mp4(), reason="mp4 files need PyAV, the extra `video`")


@dataclass(frozen=True)
class Clip:
    """A decoded file."""

    frames: list[Image.Image]
    size: tuple[int, int]
    seconds: float
    rate: Fraction
    codec: str


def decoded_gif(path: Path) -> Clip:
    """Pillow's reading of an animated GIF."""
    with Image.open(path) as file:
        assert file.format == "GIF"
        assert file.info["loop"] == 0, "it plays without an end"
        shown = [(frame.convert("RGB"), frame.info["duration"]) for frame in ImageSequence.Iterator(file)]
    milliseconds = sum(duration for _, duration in shown)
    return Clip([frame for frame, _ in shown], file.size, milliseconds / 1000, Fraction(len(shown) * 1000, milliseconds), "gif")


def decoded_mp4(path: Path) -> Clip:
    """PyAV's reading of an mp4 file."""
    import av

    with av.open(path) as file:
        (stream,) = file.streams.video
        frames = [frame.to_image() for frame in file.decode(stream)]
        assert len(frames) == stream.frames
        assert stream.duration is not None and stream.time_base is not None and stream.average_rate is not None
        seconds, codec = float(stream.duration * stream.time_base), stream.codec_context.name
        return Clip(frames, frames[0].size, seconds, stream.average_rate, codec)


def moving_square(count: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    """Frames of a yellow square that moves over a red and a blue half."""
    width, height = size
    frames = []
    for number in range(count):
        frame = Image.new("RGB", size, (20, 60, 220))
        frame.paste((200, 40, 30), (0, 0, width // 2, height))
        frame.paste((240, 240, 10), (4 * number, 8, 4 * number + 16, 24))
        frames.append(frame)
    return frames

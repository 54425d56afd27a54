"""Small video files of clips, made with PyAV, and damaged copies of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from PIL import Image

from tests.helpers.clips import moving_square

CODECS = {
    ".mp4": ("mp4", "h264"),
    ".mov": ("mov", "h264"),
    ".mkv": ("matroska", "h264"),
    ".webm": ("webm", "libvpx-vp9"),
    ".avi": ("avi", "mpeg4"),
}
"""Suffix -> container and encoder."""
CLOCKWISE = (0, 1, 0, -1, 0, 0, 0, 0, 1)
"""The matrix of a phone that was held upright: frames are shown after a quarter turn clockwise (ISO 14496-12, 6.2.2)."""


def write_video(
    path: Path,
    frames: Sequence[Image.Image] | int = 9,
    *,
    rate: int = 10,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (96, 64),
) -> Path:
    """Writes frames, or so many of a moving square, in the container of the suffix. ``times``: when each is shown, in 1/1000 s."""
    import av

    container_name, codec = CODECS[path.suffix]
    shown = moving_square(frames, size) if isinstance(frames, int) else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", format=container_name) as container:
        stream = container.add_stream(codec, rate=Fraction(rate), options={"crf": "10"} if codec == "h264" else {})
        stream.width, stream.height = shown[0].size
        stream.pix_fmt = "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(shown):
            frame = av.VideoFrame.from_image(image)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, matrix: Sequence[int] = CLOCKWISE) -> Path:
    """Writes a matrix into the header of an mp4 file's track, as phones do."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    units = [1 << 30 if column == 2 else 1 << 16 for _ in range(3) for column in range(3)]
    content[place : place + 36] = struct.pack(">9i", *(number * unit for number, unit in zip(matrix, units, strict=True)))
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    """Keeps the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path

"""Puts the inputs of an edited image beside it, so that both are seen in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from trainer_engine.media import Picture

BESIDE = ("left", "right")
FIRST = ("left", "top")


def stitched(picture: Picture, inputs: Sequence[Image.Image], location: str) -> Picture:
    """Returns the picture with ``inputs`` at its ``left``, ``right``, ``top`` or ``bottom``; each frame of a clip with the same ones.

    Inputs keep their aspect ratio: beside the picture they have its height, above and below it its width.
    """
    if not inputs:
        return picture
    if isinstance(picture, Image.Image):
        return _joined(picture, inputs, location)
    return [_joined(frame, inputs, location) for frame in picture]


def _joined(picture: Image.Image, inputs: Sequence[Image.Image], location: str) -> Image.Image:
    beside = location in BESIDE
    scaled = [_scaled(image, picture.size, beside=beside) for image in inputs]
    parts = [*scaled, picture] if location in FIRST else [picture, *scaled]
    lengths = [part.width if beside else part.height for part in parts]
    joined = Image.new("RGB", (sum(lengths), picture.height) if beside else (picture.width, sum(lengths)))
    place = 0
    for part, length in zip(parts, lengths, strict=True):
        joined.paste(part, (place, 0) if beside else (0, place))
        place += length
    return joined


def _scaled(image: Image.Image, size: tuple[int, int], *, beside: bool) -> Image.Image:
    scale = size[1] / image.height if beside else size[0] / image.width
    wanted = (max(1, round(image.width * scale)), size[1]) if beside else (size[0], max(1, round(image.height * scale)))
    return image.convert("RGB").resize(wanted, Image.Resampling.LANCZOS)

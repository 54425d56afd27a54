"""Writes generated media as files that a browser shows: an image as PNG, WebP or JPEG, frames as an animated GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.events import MediaFile

Picture: TypeAlias = Image.Image | Sequence[Image.Image]
"""An image, or the frames of a video in order."""
FRAMES_PER_SECOND = 12
MIME_TYPES = {".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".jpg": "image/jpeg"}
ENDINGS = {"png": ".png", "webp": ".webp", "jpeg": ".jpg"}
"""``validation_image_format`` -> suffix of the file name."""


def write_picture(folder: Path, stem: str, picture: Picture, *, format: str = "png", quality: int = 90) -> Path:
    """Write an image as ``<stem>.png`` (``.webp``, ``.jpg``) or frames as ``<stem>.gif``, atomically. Returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Image.Image):
        path, content = folder / f"{stem}{ENDINGS[format]}", encode_still(picture, format, quality)
    else:
        path, content = folder / f"{stem}.gif", encode_gif(picture)
    write_atomically(path, content)
    return path


def encode_still(image: Image.Image, format: str = "png", quality: int = 90) -> bytes:
    """Encode an image. ``quality``, 1 to 100, applies to lossy formats."""
    buffer = io.BytesIO()
    arguments = {} if format == "png" else {"quality": quality}
    image.save(buffer, format=format.upper(), **arguments)
    return buffer.getvalue()


def encode_gif(frames: Sequence[Image.Image], frames_per_second: float = FRAMES_PER_SECOND) -> bytes:
    """Encode a looping animation, timed in hundredths of a second. Raises ValueError without frames."""
    if not frames:
        raise ValueError("a video has at least one frame")
    buffer = io.BytesIO()
    first, *others = [frame.convert("RGB") for frame in frames]
    milliseconds = max(20, round(100 / frames_per_second) * 10)
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, disposal=1)
    return buffer.getvalue()


def attachments(path: Path) -> dict[str, list[MediaFile]]:
    """The fields of an image event for a file: ``images``, or ``videos`` for an animation."""
    file = MediaFile(file=str(path), mime_type=MIME_TYPES[path.suffix])
    return {"videos" if path.suffix == ".gif" else "images": [file]}

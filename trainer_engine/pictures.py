"""What is drawn, as files that a browser shows: an image as PNG, frames as an animated GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.events import MediaFile

Picture: TypeAlias = Image.Image | Sequence[Image.Image]
"""An image, or the frames of a video in their order."""
FRAMES_PER_SECOND = 12
MIME_TYPES = {".png": "image/png", ".gif": "image/gif"}


def write_picture(folder: Path, stem: str, picture: Picture) -> Path:
    """Write ``<stem>.png`` or, for frames, ``<stem>.gif`` into ``folder``, whole or not at all; the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    is_image = isinstance(picture, Image.Image)
    path = folder / f"{stem}{'.png' if is_image else '.gif'}"
    write_atomically(path, encode_png(picture) if isinstance(picture, Image.Image) else encode_gif(picture))
    return path


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def encode_gif(frames: Sequence[Image.Image], frames_per_second: float = FRAMES_PER_SECOND) -> bytes:
    """An animation without end. A GIF counts in hundredths of a second. ValueError without frames."""
    if not frames:
        raise ValueError("a video has at least one frame")
    buffer = io.BytesIO()
    first, *others = [frame.convert("RGB") for frame in frames]
    milliseconds = max(20, round(100 / frames_per_second) * 10)
    first.save(buffer, format="GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, disposal=1)
    return buffer.getvalue()


def attachments(path: Path) -> dict[str, list[MediaFile]]:
    """The field of an image event that a file belongs into: ``images``, or ``videos`` for an animation."""
    file = MediaFile(file=str(path), mime_type=MIME_TYPES[path.suffix])
    return {"videos" if path.suffix == ".gif" else "images": [file]}

"""Decodes images of users in a process of its own, with limits: whether each is whole, and a small copy of it where one is wanted.
A clip is opened, and its first frame decoded.

``python -m environments.images.decode`` reads a request from its standard input and writes the answer to its standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from environments.limited_process import MEMORY_EXIT, Limits, ProcessFailed, answer_of, apply_limits
from trainer_engine.contract.atomic import PRIVATE_MODE
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.media import containers
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.media.pixels import (
    DECODING_ERRORS,
    as_rgb,
    cicp_of,
    opened,
    profile_of,
    refuse_bombs,
    refuse_endless,
)
from trainer_engine.datasets.sources.base import SourceFile
from trainer_engine.datasets.sources.local import LocalSource

MODULE = "environments.images.decode"
LIMITS = Limits(cpu_seconds=60, memory_bytes=2 << 30, wall_seconds=90.0, waiting_seconds=30.0)
"""Enough for one image of the largest size, or for a hundred of a camera."""
SLOTS = threading.BoundedSemaphore(2)
EDGE = 320
"""Longest edge of a small copy, in pixels."""
QUALITY = 80


@dataclass(frozen=True)
class Wanted:
    """An image to decode."""

    path: Path
    thumbnail: Path | None = None
    """Where its small copy is written, as WebP."""


@dataclass(frozen=True)
class Decoded:
    """What was found. ``size`` is None for an image that cannot be used; ``reason`` then says why."""

    size: Size | None
    reason: str = ""


def decode(images: Sequence[Wanted]) -> list[Decoded]:
    """Decode images, each completely, in another process. Without an answer from it, all of them count as unusable."""
    request = [{"path": os.fspath(one.path), "thumbnail": one.thumbnail and os.fspath(one.thumbnail)} for one in images]
    try:
        answer = json.loads(answer_of(MODULE, json.dumps(request).encode("ascii"), LIMITS, SLOTS))
    except ProcessFailed as failure:
        return [Decoded(None, f"the process that decodes images {failure}")] * len(images)
    return [Decoded(tuple(one["size"]) if one["size"] else None, one["reason"]) for one in answer]


def answer(request: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Decodes the images of a request."""
    return [_answer(Path(one["path"]), one["thumbnail"] and Path(one["thumbnail"])) for one in request]


def _answer(path: Path, thumbnail: Path | None) -> dict[str, Any]:
    try:
        file = SourceFile(LocalSource(os.fspath(path.parent)), path.name, path.stat().st_size)
        return {"size": _decoded(file, thumbnail), "reason": ""}
    except BrokenImage as broken:
        return {"size": None, "reason": broken.reason}
    except OSError as error:
        return {"size": None, "reason": f"it cannot be read: {error.strerror or error}"}


def _decoded(file: SourceFile, thumbnail: Path | None) -> Size:
    """The size of an image as it is shown. Raises BrokenImage, and OSError if the small copy cannot be written."""
    if Path(file.name).suffix.lower() in containers.SUFFIXES:
        return containers.measure_video(file).size
    refuse_endless(file)
    with opened(file) as image:
        refuse_bombs(file, image.size)
        size = _shown_size(image)
        if thumbnail is not None:
            image.draft("RGB", (2 * EDGE, 2 * EDGE))  # a JPEG is then decoded at a fraction of its size
        try:
            image.load()
            small = _small(image, file) if thumbnail is not None else None
        except (*DECODING_ERRORS, Image.DecompressionBombError) as error:
            reason = "the file is cut off" if "truncated" in str(error).lower() else "its pixels cannot be decoded"
            raise BrokenImage(file.location, f"{reason}: {error}") from error
    if small is not None and thumbnail is not None:
        _write(small, thumbnail)
    return size


def _shown_size(image: Image.Image) -> Size:
    """The size after the EXIF orientation is applied. A broken orientation is none."""
    try:
        is_turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    except DECODING_ERRORS:
        is_turned = False
    width, height = image.size
    return (height, width) if is_turned else (width, height)


def _small(image: Image.Image, file: SourceFile) -> Image.Image:
    colours = profile_of(image), cicp_of(image, file)
    small = as_rgb(ImageOps.exif_transpose(image), *colours)
    small.thumbnail((EDGE, EDGE))
    return small


def _write(small: Image.Image, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_MODE), "wb") as stream:  # noqa: PTH123
            small.save(stream, "WEBP", quality=QUALITY, method=2)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> None:
    """Answers one request."""
    apply_limits(sys.argv[1:])
    try:
        request = json.load(sys.stdin)
        with os.fdopen(os.dup(1), "w", encoding="ascii") as stream:
            os.dup2(2, 1)  # what a library prints is no part of the answer
            json.dump(answer(request), stream)
    except MemoryError:
        os._exit(MEMORY_EXIT)


if __name__ == "__main__":
    main()

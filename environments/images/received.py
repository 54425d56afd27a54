"""Takes uploaded files into a place of their own, piece by piece: names are cleaned, sizes limited, nothing is held in memory."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.media.containers import SUFFIXES as CLIP_SUFFIXES
from trainer_engine.datasets.media.containers import missing_suffixes
from trainer_engine.datasets.media.image import SUFFIXES as IMAGE_SUFFIXES

CAPTION = ".txt"
MEDIA = IMAGE_SUFFIXES | CLIP_SUFFIXES
LARGEST_CAPTION_BYTES = 80_000
"""That of 20,000 characters, the longest caption."""
LONGEST_STEM = 100
PIECE_BYTES = 1 << 20
UNSAFE = re.compile(r"[^\w .()+,=@-]+")
"""Everything but letters, digits and a few signs that no shell, file system or web page gives a meaning in the middle of a name."""


class Upload(Protocol):
    """A file as a form sends it."""

    name: str | None

    def read(self, num_bytes: int | None = None) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Received:
    """An uploaded file in a place of its own, under a name that says nothing."""

    name: str
    """The name that it gets, in safe characters."""
    path: Path
    size_bytes: int

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]  # noqa: PTH122 - a stem may hold dots

    @property
    def is_caption(self) -> bool:
        return self.path.suffix == CAPTION


def safe_name(given: str) -> str | None:
    """A file name without folders, leading dots or dashes, and odd characters; its suffix in lower case.

    None if it is that of no image, no clip and no caption.
    """
    base = PurePosixPath(unicodedata.normalize("NFC", given).replace("\\", "/")).name
    stem, dot, suffix = base.rpartition(".")
    if not dot or f".{suffix.lower()}" not in (*MEDIA, CAPTION):
        return None
    kept = UNSAFE.sub("_", stem.encode("utf-8", "ignore").decode()).lstrip("-._ ").rstrip(" ._")
    while len(kept.encode()) > LONGEST_STEM:
        kept = kept[:-1]
    return f"{kept or 'image'}.{suffix.lower()}"


def receive(files: Iterable[Upload], place: Path, largest_bytes: int, refused: list[Problem]) -> Iterator[Received]:
    """The files that may be used, each written to ``place``; why the others are not is added to ``refused``. Raises OSError."""
    for number, file in enumerate(files):
        given = file.name or ""
        name = safe_name(given)
        if name is None:
            refused.append(refusal(given, "no_image", "has the suffix of no image, clip or caption"))
            continue
        suffix = PurePosixPath(name).suffix
        if suffix in missing_suffixes():
            refused.append(refusal(given, "unreadable", f"cannot be read here: {missing_suffixes()[suffix]}"))
            continue
        limit = LARGEST_CAPTION_BYTES if suffix == CAPTION else largest_bytes
        received = Received(name, place / f"{number}{suffix}", _written(file, place / f"{number}{suffix}", limit))
        file.close()  # so that the next one is the only one that is open
        if not received.size_bytes:
            refused.append(refusal(given, "empty", "is empty"))
        elif received.size_bytes > limit:
            received.path.unlink()
            refused.append(refusal(given, "too_large", f"is larger than {_size_text(limit)}"))
        else:
            yield received


def _written(file: Upload, path: Path, limit: int) -> int:
    """Write a file up to its limit. Returns the number of its bytes, one more than the limit for a longer one."""
    size = 0
    with path.open("xb") as stream:
        while size <= limit and (piece := file.read(min(PIECE_BYTES, limit + 1 - size))):
            size += stream.write(piece)
    return size


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes / 1_000_000:g} MB" if size_bytes >= 1_000_000 else f"{size_bytes:,} bytes"


def refusal(given: str, code: str, what: str) -> Problem:
    """Why a file was not stored."""
    hint = "copy such files into the folder yourself" if code == "too_large" else ""
    return Problem.error("file", code, f"{given[:100]!r} {what}.", got=given[:100], expected="an image, a clip or its caption", hint=hint)

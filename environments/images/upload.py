"""Stores uploaded images in a folder of the home: decoded first, under safe names. Nothing that is there is replaced."""

from __future__ import annotations

import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from environments.create.names import name_problem
from environments.errors import EnvironmentProblems
from environments.images.decode import Wanted, decode
from environments.paths import Home, outside
from trainer_engine.contract.atomic import why_not_written, write_atomically
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_file, read_small
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.media.image import SUFFIXES

FOLDER = "datasets"
LARGEST_BYTES = 8_000_000
"""With the frame of a form around it, this fits the largest body that the server accepts."""
MOST_AT_ONCE = 100
MOST_IN_FOLDER = 20_000
LONGEST_STEM = 100
MOST_NUMBERED = 1000
UNSAFE = re.compile(r"[^\w .()+,=@-]+")
"""Everything but letters, digits and a few signs that no shell, file system or web page gives a meaning in the middle of a name."""


class Upload(Protocol):
    """A file as a form sends it."""

    name: str | None
    size: int | None

    def read(self, num_bytes: int | None = None) -> bytes: ...


@dataclass(frozen=True)
class StoredImage:
    """An image that is in the folder now."""

    file: str
    size: Size
    size_bytes: int
    is_new: bool
    """False if the folder held the same bytes under this name."""


@dataclass(frozen=True)
class Stored:
    """What became of an upload."""

    folder: str
    """Relative to the home, as ``instance_data_dir`` takes it."""
    images: list[StoredImage] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)
    """One for each file that was not stored."""


def store_images(name: str, uploads: Iterable[Upload], home: Home) -> Stored:
    """Store images in ``datasets/<name>``, which is created. Raises EnvironmentProblems if the folder cannot be used.

    A file that is no image, or that the disk has no room for, is refused; the others are stored.
    """
    folder = upload_folder(name, home)
    files = list(uploads)
    if not files or len(files) > MOST_AT_ONCE:
        message = f"{len(files)} files were sent." if files else "No file was sent."
        raise EnvironmentProblems.of([Problem.error("file", "bad_count", message, got=len(files), expected=f"1 to {MOST_AT_ONCE} files")])
    stored = Stored(f"{FOLDER}/{name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        room = MOST_IN_FOLDER - _count(folder)
        with tempfile.TemporaryDirectory(prefix="upload-", dir=home.state) as place:
            _store(list(_received(files, Path(place), stored)), folder, stored, room)
    except OSError as error:
        raise EnvironmentProblems.of([Problem.error("folder", "not_writable", why_not_written(folder, error))]) from error
    return stored


def upload_folder(name: str, home: Home) -> Path:
    """The absolute path of ``datasets/<name>``. It lies in the home, whatever links lead there. Raises EnvironmentProblems."""
    problem = name_problem(name, "folder")
    if problem is not None:
        raise EnvironmentProblems.of([problem])
    folder = Path(os.path.realpath(home.root / FOLDER / name))
    refusal = home.place_rule.refusal(folder, writing=True)
    if refusal is not None:
        raise EnvironmentProblems.of([outside(f"{FOLDER}/{name}", "folder", refusal)])
    if not folder.is_relative_to(os.path.realpath(home.root)):
        message = f"{FOLDER}/{name} is a link that leads out of the server's home."
        raise EnvironmentProblems.of([Problem.error("folder", "outside_home", message, got=name, hint="name another folder")])
    return folder


def safe_name(given: str) -> str | None:
    """A file name without folders, leading dots or dashes, and odd characters; its suffix in lower case. None if it is that of no image."""
    base = PurePosixPath(unicodedata.normalize("NFC", given).replace("\\", "/")).name
    stem, dot, suffix = base.rpartition(".")
    if not dot or f".{suffix.lower()}" not in SUFFIXES:
        return None
    kept = UNSAFE.sub("_", stem.encode("utf-8", "ignore").decode()).lstrip("-._ ").rstrip(" ._")
    while len(kept.encode()) > LONGEST_STEM:
        kept = kept[:-1]
    return f"{kept or 'image'}.{suffix.lower()}"


def _count(folder: Path) -> int:
    with os.scandir(folder) as entries:
        return sum(1 for _ in entries)


@dataclass(frozen=True)
class _Received:
    """An uploaded file in a place of its own, under a name that says nothing."""

    name: str
    path: Path
    content: bytes


def _received(files: Iterable[Upload], place: Path, stored: Stored) -> Iterator[_Received]:
    """The files that may be images, each written to ``place``. Raises OSError."""
    for number, file in enumerate(files):
        given = file.name or ""
        name = safe_name(given)
        content = file.read(LARGEST_BYTES + 1)
        if name is None:
            stored.refused.append(_refused(given, "no_image", "has no suffix of an image"))
        elif not content:
            stored.refused.append(_refused(given, "empty", "is empty"))
        elif len(content) > LARGEST_BYTES:
            stored.refused.append(_refused(given, "too_large", f"is larger than {LARGEST_BYTES // 1_000_000} MB"))
        else:
            path = place / f"{number}{PurePosixPath(name).suffix}"
            path.write_bytes(content)
            yield _Received(name, path, content)


def _refused(given: str, code: str, what: str) -> Problem:
    hint = "copy such files into the folder yourself" if code == "too_large" else ""
    return Problem.error("file", code, f"{given[:100]!r} {what}.", got=given[:100], expected="an image", hint=hint)


def _store(received: list[_Received], folder: Path, stored: Stored, room: int) -> None:
    for one, found in zip(received, decode([Wanted(one.path) for one in received]), strict=True):
        if found.size is None:
            stored.refused.append(_refused(one.name, "broken_image", f"cannot be used: {found.reason}"))
            continue
        if room <= 0:
            stored.refused.append(_refused(one.name, "full_folder", f"is one too many: a folder takes {MOST_IN_FOLDER:,} files here"))
            continue
        try:
            path, is_new = _write(folder, one)
        except OSError as error:
            stored.refused.append(Problem.error("file", "not_written", why_not_written(folder, error), got=one.name))
            continue
        room -= is_new
        stored.images.append(StoredImage(path.name, found.size, len(one.content), is_new))


def _write(folder: Path, one: _Received) -> tuple[Path, bool]:
    """The file that holds the image, and whether it is new. A name that is taken gets a number. Raises OSError."""
    stem, suffix = os.path.splitext(one.name)  # noqa: PTH122 - a stem may hold dots
    for number in range(1, MOST_NUMBERED):
        path = folder / (one.name if number == 1 else f"{stem}-{number}{suffix}")
        try:
            write_atomically(path, one.content, is_new=True)
            return path, True
        except FileExistsError:
            if not path.is_symlink() and is_file(path) and _holds(path, one.content):
                return path, False
    raise FileExistsError(f"{MOST_NUMBERED} files of the name {one.name}")


def _holds(path: Path, content: bytes) -> bool:
    return path.stat().st_size == len(content) and read_small(path, LARGEST_BYTES) == content

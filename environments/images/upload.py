"""Stores uploaded images, clips and captions in a folder of the home: opened first, under safe names. Nothing that is there is replaced."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from environments.create.names import name_problem
from environments.errors import EnvironmentProblems
from environments.images.decode import Wanted, decode
from environments.images.received import CAPTION, LARGEST_CAPTION_BYTES, MEDIA, Received, Upload, receive, refusal
from environments.paths import Home, outside
from trainer_engine.contract.atomic import why_not_written, write_atomically
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_file, open_regular, read_small
from trainer_engine.datasets.geometry import Size
from trainer_engine.datasets.text import NotText
from trainer_engine.datasets.text import decode as decode_text

FOLDER = "datasets"
MOST_AT_ONCE = 100
MOST_IN_FOLDER = 20_000
MOST_NUMBERED = 1000


@dataclass(frozen=True)
class UploadLimits:
    """What uploads may take."""

    file_bytes: int
    """Of one image or clip."""
    kept_free_bytes: int
    """Space on the disk that stays free."""


@dataclass(frozen=True)
class StoredImage:
    """An image or a clip that is in the folder now."""

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
    captions: list[str] = field(default_factory=list)
    """The text files that are in the folder now."""
    refused: list[Problem] = field(default_factory=list)
    """One for each file that was not stored."""


def store_images(name: str, uploads: Iterable[Upload], home: Home, limits: UploadLimits) -> Stored:
    """Store files in ``datasets/<name>``, which is created. Raises EnvironmentProblems if the folder cannot be used.

    A file that cannot be used, is too large, or that the disk has no room for, is refused; the others are stored.
    """
    folder = upload_folder(name, home)
    files = list(uploads)
    if not files or len(files) > MOST_AT_ONCE:
        message = f"{len(files)} files were sent." if files else "No file was sent."
        raise EnvironmentProblems.of([Problem.error("file", "bad_count", message, got=len(files), expected=f"1 to {MOST_AT_ONCE} files")])
    stored = Stored(f"{FOLDER}/{name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="upload-", dir=home.state) as place:
            received = list(receive(files, Path(place), limits.file_bytes, stored.refused))
            stems = _store_images([one for one in received if not one.is_caption], folder, stored, limits.kept_free_bytes)
            for one in received:
                if one.is_caption:
                    _store_caption(one, folder, stems.get(one.stem) or _stems_there(folder, one.stem), stored)
    except OSError as error:
        raise EnvironmentProblems.of([Problem.error("folder", "not_writable", why_not_written(folder, error))]) from error
    return stored


def upload_folder(name: str, home: Home) -> Path:
    """The absolute path of ``datasets/<name>``. It lies in the home, whatever links lead there. Raises EnvironmentProblems."""
    problem = name_problem(name, "folder", of="a folder of images")
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


def _store_images(received: list[Received], folder: Path, stored: Stored, kept_free_bytes: int) -> dict[str, set[str]]:
    """Store images and clips that can be opened. Returns the stem of each -> the stems under which it lies in the folder."""
    with os.scandir(folder) as entries:
        room = MOST_IN_FOLDER - sum(1 for _ in entries)
    stems: dict[str, set[str]] = {}
    for one, found in zip(received, decode([Wanted(one.path) for one in received]) if received else [], strict=True):
        if found.size is None:
            stored.refused.append(refusal(one.name, "broken_image", f"cannot be used: {found.reason}"))
        elif room <= 0:
            stored.refused.append(refusal(one.name, "full_folder", f"is one too many: a folder takes {MOST_IN_FOLDER:,} files here"))
        elif (written := _placed(one, folder, stored, kept_free_bytes)) is not None:
            path, is_new = written
            room -= is_new
            stored.images.append(StoredImage(path.name, found.size, one.size_bytes, is_new))
            stems.setdefault(one.stem, set()).add(path.stem)
    return stems


def _placed(one: Received, folder: Path, stored: Stored, kept_free_bytes: int) -> tuple[Path, bool] | None:
    """The file that holds an image now, and whether it is new; None if it could not be written."""
    try:
        if shutil.disk_usage(folder).free < one.size_bytes + kept_free_bytes:
            stored.refused.append(refusal(one.name, "no_space", f"is too much: {kept_free_bytes >> 20:,} MiB of the disk stay free"))
            return None
        return _write(folder, one)
    except OSError as error:
        stored.refused.append(Problem.error("file", "not_written", why_not_written(folder, error), got=one.name))
        return None


def _write(folder: Path, one: Received) -> tuple[Path, bool]:
    """The file that holds the image, and whether it is new. A name that is taken gets a number. Raises OSError."""
    for number in range(1, MOST_NUMBERED):
        path = folder / (one.name if number == 1 else f"{one.stem}-{number}{one.path.suffix}")
        try:
            with one.path.open("rb") as content:
                write_atomically(path, content, is_new=True)
            return path, True
        except FileExistsError:
            if not path.is_symlink() and is_file(path) and _hold_the_same(path, one.path):
                return path, False
    raise FileExistsError(f"{MOST_NUMBERED} files of the name {one.name}")


def _hold_the_same(path: Path, other: Path) -> bool:
    if path.stat().st_size != other.stat().st_size:
        return False
    with open_regular(path) as first, open_regular(other) as second:
        while (piece := first.read(1 << 20)) == second.read(1 << 20):
            if not piece:
                return True
    return False


def _stems_there(folder: Path, stem: str) -> set[str]:
    """The stem itself if the folder holds an image or a clip of it."""
    return {stem} if any(is_file(folder / f"{stem}{suffix}") for suffix in MEDIA) else set()


def _store_caption(one: Received, folder: Path, stems: set[str], stored: Stored) -> None:
    """Store a caption beside each image that it belongs to. A text that is there stays."""
    content = read_small(one.path, LARGEST_CAPTION_BYTES)
    try:
        is_blank = not decode_text(content).strip()
    except NotText as error:
        stored.refused.append(refusal(one.name, "no_text", str(error)))
        return
    if is_blank or not stems:
        what = "is blank" if is_blank else "belongs to no image: none of its name was sent with it or is in the folder"
        stored.refused.append(refusal(one.name, "empty" if is_blank else "no_image", what))
    for stem in sorted(stems if not is_blank else ()):
        path = folder / f"{stem}{CAPTION}"
        try:
            write_atomically(path, content, is_new=True)
        except FileExistsError:
            if path.is_symlink() or not is_file(path) or not _hold_the_same(path, one.path):
                stored.refused.append(refusal(one.name, "exists", f"was not stored: {path.name} is there already, with another text"))
                continue
        except OSError as error:
            stored.refused.append(Problem.error("file", "not_written", why_not_written(folder, error), got=one.name))
            continue
        stored.captions.append(path.name)

"""Small copies of images, made in the limited process and kept in ``state/thumbnails`` up to a size."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from environments.errors import EnvironmentRefused
from environments.images.datasets import NoSuchImage, OpenDataset
from environments.images.decode import Wanted, decode
from trainer_engine.contract.atomic import PRIVATE_FOLDER_MODE
from trainer_engine.contract.files import read_small

FOLDER = "thumbnails"
AT_ONCE = 24
"""Copies that one process makes: a page asks for its images one by one, and starting a process takes longer than an image."""
LARGEST_BYTES = 256 << 20
KEPT_BYTES = 200 << 20
"""What is left of the copies once there were too many."""
TURN = threading.Lock()
"""Lets one request make copies, so that the next one finds them."""


def thumbnail_of(dataset: OpenDataset, file: str) -> bytes:
    """The small copy of an image as WebP. Those of the images that follow are made with it. Raises NoSuchImage, EnvironmentProblems."""
    source = dataset.path_of(file)
    copy = _place(dataset.home.state, source)
    with suppress(FileNotFoundError):  # another request may remove it as one of the oldest
        return read_small(copy)
    with TURN:
        if not copy.is_file():
            copy.parent.mkdir(mode=PRIVATE_FOLDER_MODE, exist_ok=True)
            _prune(copy.parent)
            others = dict(_placed(dataset, [name for name in _neighbours_of(dataset, file) if name != file]))
            wanted = [Wanted(path, place) for path, place in {source: copy, **others}.items() if not place.is_file()]
            reason = decode(wanted)[0].reason
            if not copy.is_file():
                raise NoSuchImage(f"'{file[:200]}' cannot be shown: {reason or 'the disk took no copy'}")
        return read_small(copy)


def _placed(dataset: OpenDataset, files: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """Images with the places of their copies. One that may not be read, or is gone, is no reason to show none of the others."""
    for file in files:
        with suppress(EnvironmentRefused):
            source = dataset.path_of(file)
            yield source, _place(dataset.home.state, source)


def _neighbours_of(dataset: OpenDataset, file: str) -> list[str]:
    """An image and those that follow it in the order of their names. Lists the whole dataset."""
    names = [one.name for one in dataset.files().files]
    begin = names.index(file) if file in names else 0
    return names[begin : begin + AT_ONCE]


def _place(state: Path, source: Path) -> Path:
    """The address of a copy changes with the file."""
    try:
        facts = source.stat()
    except OSError as error:
        raise NoSuchImage(f"{source.name} cannot be read: {error.strerror or error}") from error
    key = f"{source}\0{facts.st_size}\0{facts.st_mtime_ns}".encode("utf-8", "surrogateescape")
    return state / FOLDER / f"{hashlib.sha256(key).hexdigest()[:40]}.webp"


def _prune(folder: Path) -> None:
    """Remove the oldest copies if all of them take more than ``LARGEST_BYTES``."""
    with os.scandir(folder) as entries:
        facts = [(entry.stat(follow_symlinks=False), entry.path) for entry in entries]
    left = sum(one.st_size for one, _ in facts)
    if left <= LARGEST_BYTES:
        return
    for one, path in sorted(facts, key=lambda pair: pair[0].st_mtime_ns):
        if left <= KEPT_BYTES:
            return
        with suppress(OSError):
            Path(path).unlink()
        left -= one.st_size

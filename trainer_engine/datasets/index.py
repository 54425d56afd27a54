"""Discovers the images in a folder and measures them, opening no unchanged file twice.

An index caches measurements by relative name, size and modification time. Losing it only costs time.
"""

# ruff: noqa: PTH110, PTH116, PTH118, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import read_document
from trainer_engine.datasets.images import BrokenImage, inspect_image
from trainer_engine.datasets.sources.local import FoundFile, LeftOut, list_images

VERSION = 2
CHUNK_FILES = 128
MOST_THREADS = 8

Progress = Callable[[str, int, int], None]
"""(label of the work, number done, total)"""


class ImageFile(NamedTuple):
    """An image file and its size in pixels, after its EXIF orientation."""

    name: str
    size_bytes: int
    mtime_ns: int
    width: int
    height: int
    remark: str = ""
    """A note about the file for people; empty if there is none."""


@dataclass
class Discovery:
    """The images in a folder."""

    images: list[ImageFile]
    """Sorted by name."""
    left_out: list[LeftOut]
    opened: int
    """Number of files that had to be opened; the others were in the index."""

    @property
    def files(self) -> int:
        """Number of image files, usable or not."""
        return len(self.images) + len(self.left_out)


Measured = tuple[int, int, int, int, str]
"""Size in bytes, mtime in ns, width, height, and a remark; or, if width and height are 0, the reason why the file is broken."""


def discover(
    root: str,
    *,
    index_dir: Path | None = None,
    threads: int = 8,
    choose: Callable[[list[FoundFile]], list[FoundFile]] | None = None,
    on_progress: Progress | None = None,
) -> Discovery:
    """Measures every image in ``root`` and its subfolders. Raises OSError if it cannot be listed.

    ``choose`` may select some of the listed files. Measurements are cached in ``index_dir``; without it nothing is written.
    """
    listing = list_images(root)
    files = choose(listing.files) if choose else listing.files
    index = index_dir / _index_name(root) if index_dir else None
    known = _read_index(index) if index else {}
    fresh = [file for file in files if known.get(file.name, (-1, -1))[:2] != (file.size_bytes, file.mtime_ns)]
    for name, measured in _measure_all(root, fresh, threads, on_progress or _silent):
        known[name] = measured
    if index and (fresh or len(known) != len(files)):
        _write_index(index, {file.name: known[file.name] for file in files})
    return _discovery(files, known, listing.left_out, len(fresh))


def _silent(label: str, current: int, total: int) -> None:
    """Ignores progress."""


def _discovery(files: Iterable[FoundFile], known: dict[str, Measured], left_out: Sequence[LeftOut], opened: int) -> Discovery:
    images, broken = [], list(left_out)
    for name, size_bytes, mtime_ns in files:
        _, _, width, height, remark = known[name]
        if width:
            images.append(ImageFile(name=name, size_bytes=size_bytes, mtime_ns=mtime_ns, width=width, height=height, remark=remark))
        else:
            broken.append(LeftOut(name, remark, broken=True))
    return Discovery(images, sorted(broken), opened)


def _measure_all(root: str, files: list[FoundFile], threads: int, on_progress: Progress) -> Iterable[tuple[str, Measured]]:
    chunks = [files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES)]
    done = 0
    with ThreadPoolExecutor(max(1, min(threads, MOST_THREADS, len(chunks)))) as pool:
        for results in pool.map(lambda chunk: [_measure(root, file) for file in chunk], chunks):
            yield from results
            done += len(results)
            on_progress("Reading image headers", done, len(files))


def _measure(root: str, file: FoundFile) -> tuple[str, Measured]:
    try:
        (width, height), remark = inspect_image(os.path.join(root, file.name), file.size_bytes)
    except BrokenImage as broken:
        return file.name, (file.size_bytes, file.mtime_ns, 0, 0, broken.reason)
    return file.name, (file.size_bytes, file.mtime_ns, width, height, remark)


def _index_name(root: str) -> str:
    return f"images-{hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]}.json"


def _read_index(path: Path) -> dict[str, Measured]:
    """Returns the cached measurements, or none if the index is missing, damaged or of another version."""
    try:
        document = read_document(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("version") != VERSION or not isinstance(document.get("files"), dict):
        return {}
    return {name: tuple(row) for name, row in document["files"].items() if _is_row(row)}


def _is_row(row: Any) -> bool:
    return isinstance(row, list) and [type(value) for value in row] == [int, int, int, int, str]


def _write_index(path: Path, rows: dict[str, Measured]) -> None:
    # Lone surrogates of undecodable names survive as \udcXX escapes.
    content = json.dumps({"version": VERSION, "files": rows}, separators=(",", ":")).encode("ascii")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError:
        # A full or read-only disk only makes the next scan slower; files that must be written there report it.
        return

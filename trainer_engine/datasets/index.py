"""Discovers the media files of a source and measures them, opening no unchanged file twice.

An index caches measurements by name, size and version. Losing it only costs time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import read_document
from trainer_engine.datasets.media.base import BrokenImage, medium_of, suffixes_of
from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Source, SourceFile, Version, reason_of

VERSION = 2
ROW_LENGTHS = (5, 7)
CHUNK_FILES = 128
MOST_THREADS = 8

Progress = Callable[[str, int, int], None]
"""(label of the work, number done, total)"""


class ImageFile(NamedTuple):
    """A media file and its size in pixels, as it is shown."""

    name: str
    size_bytes: int
    version: Version
    width: int
    height: int
    remark: str = ""
    """A note about the file for people; empty if there is none."""
    frames: int = 1
    frame_rate: float | None = None


@dataclass
class Discovery:
    """The media files of a source."""

    source: Source
    images: list[ImageFile]
    """Sorted by name."""
    left_out: list[LeftOut]
    opened: int
    """Number of files that had to be opened; the others were in the index, or had their size in the listing."""
    sized: int = 0
    """Number of images whose size came with the listing."""

    @property
    def files(self) -> int:
        """Number of media files, usable or not."""
        return len(self.images) + len(self.left_out)


Measured = tuple[Any, ...]
"""Size in bytes, version, width, height, and a remark; or, if width and height are 0, the reason why the file is broken. A clip has two
values more: the number of its frames, and how many there are a second."""
IMAGES = ("image",)


def discover(
    source: Source,
    *,
    media: Collection[str] = IMAGES,
    index_dir: Path | None = None,
    threads: int = 8,
    choose: Callable[[list[FoundFile]], list[FoundFile]] | None = None,
    on_progress: Progress | None = None,
) -> Discovery:
    """Measures every file of these media. Raises OSError if the source cannot be listed.

    ``choose`` may select some of the listed files. Measurements are cached in ``index_dir``; without it nothing is written.
    """
    listing = source.list_files(suffixes_of(media))
    files = choose(listing.files) if choose else listing.files
    index = index_dir / _index_name(source) if index_dir else None
    known = _read_index(index) if index else {}
    sized = _sized(files)
    fresh = [file for file in files if file.name not in sized and known.get(file.name, (-1, -1))[:2] != (file.size_bytes, file.version)]
    for name, measured in _measure_all(source, fresh, threads, on_progress or _silent):
        known[name] = measured
    if index and (fresh or len(known) != len(files) - len(sized)):
        _write_index(index, {file.name: known[file.name] for file in files if file.name not in sized})
    found = _discovery(source, files, known | sized, listing.left_out, len(fresh))
    return replace(found, sized=len(sized))


def _sized(files: Iterable[FoundFile]) -> dict[str, Measured]:
    """Returns the measurements of images whose size came with the listing. They are not cached: the next listing has them again."""
    sized = ((file, file.size) for file in files if file.size and not medium_of(file.name).is_clip)
    return {file.name: (file.size_bytes, file.version, *size, "") for file, size in sized}


def _silent(label: str, current: int, total: int) -> None:
    """Ignores progress."""


def _discovery(
    source: Source, files: Iterable[FoundFile], known: dict[str, Measured], left_out: Sequence[LeftOut], opened: int
) -> Discovery:
    images, broken = [], list(left_out)
    for name, *_ in files:
        measured = known[name]
        if measured[2]:
            images.append(ImageFile(name, *measured))
        else:
            broken.append(LeftOut(name, measured[4], broken=True))
    return Discovery(source, images, sorted(broken), opened)


def _measure_all(source: Source, files: list[FoundFile], threads: int, on_progress: Progress) -> Iterable[tuple[str, Measured]]:
    chunks = [files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES)]
    done = 0
    with ThreadPoolExecutor(max(1, min(threads, MOST_THREADS, len(chunks)))) as pool:
        for results in pool.map(lambda chunk: [_measure(source, file) for file in chunk], chunks):
            yield from results
            done += len(results)
            on_progress("Reading image headers", done, len(files))


def _measure(source: Source, file: FoundFile) -> tuple[str, Measured]:
    name, size_bytes, version, _ = file
    known = source.known_size(name)
    if known:
        return name, (size_bytes, version, *known, "")
    try:
        opened = SourceFile(source, name, size_bytes or source.size_of(name))
        (width, height), remark, frames, frame_rate = medium_of(name).measure(opened)
    except OSError as error:
        return name, (size_bytes, version, 0, 0, f"it cannot be read: {reason_of(error)}")
    except BrokenImage as broken:
        return name, (size_bytes, version, 0, 0, broken.reason)
    return name, (size_bytes, version, width, height, remark, *(() if frame_rate is None else (frames, frame_rate)))


def _index_name(source: Source) -> str:
    return f"images-{hashlib.sha256(os.fsencode(source.identity)).hexdigest()[:24]}.json"


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
    if not isinstance(row, list) or len(row) not in ROW_LENGTHS:
        return False
    kinds = [type(value) for value in row]
    return kinds[1] in (int, str) and [kinds[0], *kinds[2:5]] == [int, int, int, str] and kinds[5:] in ([], [int, float])


def _write_index(path: Path, rows: dict[str, Measured]) -> None:
    # Lone surrogates of undecodable names survive as \udcXX escapes.
    content = json.dumps({"version": VERSION, "files": rows}, separators=(",", ":")).encode("ascii")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError:
        # A full or read-only disk only makes the next scan slower; files that must be written there report it.
        return

"""Discovers the media files of a source and measures them, opening no unchanged file twice.

An index caches measurements by name, size and version. Losing it only costs time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from trainer_engine.datasets.index_file import Columns, Indexes, Row, type_of
from trainer_engine.datasets.media.base import BrokenImage, holds_clips, is_of_another_kind, medium_of, suffixes_of
from trainer_engine.datasets.scanning import examine_all
from trainer_engine.datasets.sources.base import NONE_PENDING, FoundFile, LeftOut, Pending, Progress, Source, SourceFile, Version, reason_of

KIND, CLIPS_KIND, VERSION = "images", "clips", 2
"""Measurements of sets of clips are apart: a GIF is an image of its first frame in the one, and a clip in the other."""
_FILE = (int, int, str)
IMAGE_ROWS = frozenset((int, version, *_FILE) for version in (int, str))
ROWS = frozenset((*row, *clip) for row in IMAGE_ROWS for clip in ((), (int, float), (type(None), type(None))))
"""Types of the values of a row. Images beside clips have no frames."""
MOST_THREADS = 8
LONGEST_EDGE = 1 << 31


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
    pending: Pending = NONE_PENDING
    """The files that are fetched when a run starts."""

    @property
    def files(self) -> int:
        """Number of media files, usable or not."""
        return len(self.images) + len(self.left_out)


Measured = tuple[Any, ...]
"""Size in bytes, version, width, height, and a remark; or, if width and height are 0, the reason why the file is broken. A clip has two
values more: the number of its frames, and how many there are a second."""
IMAGES = ("image",)
NOTHING: Measured = ()


def discover(
    source: Source,
    *,
    media: Collection[str] = IMAGES,
    index_dir: Path | Indexes | None = None,
    threads: int = 8,
    choose: Callable[[list[FoundFile]], list[FoundFile]] | None = None,
    on_progress: Progress | None = None,
) -> Discovery:
    """Measures every file of these media. Raises OSError if the source cannot be listed.

    ``choose`` may select some of the listed files. Measurements are cached in ``index_dir``, a folder or several; without it nothing is
    written.
    """
    suffixes, is_clip = suffixes_of(media), holds_clips(media)
    kind, listing = CLIPS_KIND if is_clip else KIND, source.list_files(suffixes)
    files = choose(listing.files) if choose else listing.files
    indexes = Indexes.of(index_dir)
    known = indexes.read(kind, VERSION, source, _is_row, _are_rows)
    sized = _sized(files, is_clip=is_clip)
    unsized = files if not sized else [file for file in files if file.name not in sized]
    fresh = [file for file in unsized if known.get(file[0], NOTHING)[:2] != file[1:3]]
    for name, measured in _measure_all(source, fresh, threads, on_progress or _silent, is_clip=is_clip):
        known[name] = measured
    if fresh or len(known) != len(files) - len(sized):
        indexes.write(kind, VERSION, source, {file.name: known[file.name] for file in files if file.name not in sized})
    left_out = [one._replace(broken=False) if is_of_another_kind(one.name, media) else one for one in listing.left_out]
    found = _discovery(source, files, known | sized, left_out, len(fresh))
    return replace(found, sized=len(sized), pending=listing.pending)


def _sized(files: Iterable[FoundFile], *, is_clip: bool) -> dict[str, Measured]:
    """Returns the measurements of images whose size came with the listing. They are not cached: the next listing has them again."""
    sized = ((file, file.size) for file in files if file.size and not medium_of(file.name, is_clip=is_clip).is_clip)
    return {file.name: (file.size_bytes, file.version, *size, "") for file, size in sized}


def _silent(label: str, current: int, total: int) -> None:
    """Ignores progress."""


def _discovery(
    source: Source, files: Iterable[FoundFile], known: dict[str, Measured], left_out: Sequence[LeftOut], opened: int
) -> Discovery:
    images, broken = [], list(left_out)
    for name in map(itemgetter(0), files):
        measured = known[name]
        if measured[2]:
            images.append(ImageFile(name, *(measured if measured[-1] is not None else measured[:5])))
        else:
            broken.append(LeftOut(name, measured[4], broken=True))
    return Discovery(source, images, sorted(broken), opened)


def _measure_all(
    source: Source, files: list[FoundFile], threads: int, on_progress: Progress, *, is_clip: bool
) -> Iterable[tuple[str, Measured]]:
    done = 0
    for results in examine_all(files, lambda file: _measure(source, file, is_clip=is_clip), min(threads, MOST_THREADS)):
        yield from results
        done += len(results)
        on_progress("Reading the headers of clips" if is_clip else "Reading image headers", done, len(files))


def _measure(source: Source, file: FoundFile, *, is_clip: bool) -> tuple[str, Measured]:
    name, size_bytes, version, _ = file
    medium = medium_of(name, is_clip=is_clip)
    try:
        opened = SourceFile(source, name, size_bytes or source.size_of(name))
        (width, height), remark, frames, frame_rate = medium.measure(opened)
    except OSError as error:
        return name, (size_bytes, version, 0, 0, f"it cannot be read: {reason_of(error)}")
    except BrokenImage as broken:
        return name, (size_bytes, version, 0, 0, broken.reason)
    return name, (size_bytes, version, width, height, remark, *(() if frame_rate is None else (frames, frame_rate)))


def _is_row(row: Row) -> bool:
    """Whether a row has the types of ``Measured`` and possible sizes: it may come from a folder that others can write to."""
    if tuple(map(type, row)) not in ROWS:
        return False
    width, height, _, *clip = row[2:]
    is_size = 0 < width < LONGEST_EDGE and 0 < height < LONGEST_EDGE or width == height == 0
    return is_size and all(number is None or number > 0 for number in clip) if clip else is_size


def _are_rows(columns: Columns) -> bool:
    """Whether all rows are of images that can be used."""
    if tuple(map(type_of, columns)) not in IMAGE_ROWS:
        return False
    _, _, *edges, _ = columns
    return all(min(edge) > 0 and max(edge) < LONGEST_EDGE for edge in edges)

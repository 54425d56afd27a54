"""Files in a folder of this machine."""

# ruff: noqa: PTH110, PTH116, PTH118, PTH122, PTH123
# Paths are text here: over 20,000 files, Path objects cost as much as reading the headers.
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import takewhile
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, ClassVar

from trainer_engine.contract.files import UnreadableFile, read_small, sha256_of
from trainer_engine.contract.path_rule import EVERYWHERE, PlaceRule
from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Listing, Source, SourceKind, Suffixes, reason_of


class Bound:
    """Ends a walk after so many files or so much time."""

    def __init__(self, most_files: int, seconds: float) -> None:
        self.most_files = most_files
        self.is_reached = False
        """Whether there may be files that were not looked at."""
        self._ends_at = time.monotonic() + seconds

    def allows(self, found: int) -> bool:
        """Whether the walk may look at another entry."""
        self.is_reached = self.is_reached or found >= self.most_files or time.monotonic() > self._ends_at
        return not self.is_reached


@dataclass(frozen=True)
class LocalSource(Source):
    """The files in a folder and its subfolders."""

    place: str
    places: PlaceRule = field(default=EVERYWHERE, compare=False, repr=False)
    """Judges where links in the folder lead to, for texts. The folder itself was judged before."""
    is_quick: ClassVar[bool] = True

    @property
    def identity(self) -> str:
        """The folder with links followed, so that one that is moved behind its link is another place."""
        return os.path.realpath(self.place)

    def list_files(self, suffixes: Suffixes, bound: Bound | None = None) -> Listing:
        """Lists a folder and its subfolders. Symbolic links are followed, but each folder is visited only once.

        Hidden files and folders (with a leading dot) are skipped. Unreadable ones are left out with the reason. A walk with a bound ends
        when that is reached.
        """
        listing = Listing()
        seen = {_identity(os.stat(self.place))}
        waiting = [""]
        while waiting and not (bound and bound.is_reached):
            folder = waiting.pop()
            try:
                with os.scandir(os.path.join(self.place, folder)) as entries:
                    wanted = entries if bound is None else takewhile(lambda _: bound.allows(len(listing.files)), entries)
                    waiting += list(_list_folder(wanted, folder, seen, listing, suffixes))
            except OSError as error:
                if not folder:
                    raise
                listing.left_out.append(LeftOut(folder, f"the folder cannot be listed: {reason_of(error)}", broken=True))
        listing.files.sort(key=itemgetter(0))
        return listing

    def stat(self, name: str) -> FoundFile:
        status = os.stat(f"{self.place}/{name}")
        return FoundFile(name, status.st_size, status.st_mtime_ns)

    def open(self, name: str) -> BinaryIO:
        return open(self.local_path(name), "rb")

    def within(self, places: PlaceRule) -> LocalSource:
        return replace(self, places=places)

    def refuse_closed(self, name: str) -> None:
        """Raises UnreadableFile. A file that is reached without a link lies in the folder, so it takes a few microseconds."""
        if self.places.anywhere or not any(os.path.islink(self.local_path(step)) for step in _steps(name)):  # noqa: PTH114
            return
        refusal = self.places.refusal(Path(self.local_path(name)), writing=False)
        if refusal is not None:
            raise UnreadableFile(f"it {refusal.message}")

    def read_small(self, name: str, largest: int) -> bytes:
        """Reads a regular file and nothing else: it waits for no pipe and opens no device."""
        self.refuse_closed(name)
        return read_small(self.local_path(name), largest)

    def location(self, name: str) -> str:
        return self.local_path(name)

    def local_path(self, name: str) -> str:
        return f"{self.place}/{name}" if self.place[-1:] not in ("", "/") else self.place + name

    def sha256(self, name: str) -> str:
        return sha256_of(Path(self.local_path(name)))


def _steps(name: str) -> Iterator[str]:
    """Yields a relative name and the folders on the way to it."""
    while name:
        yield name
        name = os.path.dirname(name)  # noqa: PTH120


def _list_folder(
    entries: Iterator[os.DirEntry[str]], folder: str, seen: set[tuple[int, int]], listing: Listing, suffixes: Suffixes
) -> Iterator[str]:
    """Adds the files of one folder to the listing, and yields its subfolders that were not visited yet."""
    usable, refused, files = suffixes.usable, suffixes.refused, listing.files
    above = f"{folder}/" if folder else ""
    for entry in entries:
        base = entry.name
        if base[0] == ".":
            continue
        dot = base.rfind(".")
        suffix = base[dot:].lower() if dot > 0 else ""
        try:
            if suffix in usable and entry.is_file():
                status = entry.stat()
                if status.st_size:
                    files.append(FoundFile(above + base, status.st_size, status.st_mtime_ns))
                else:
                    listing.left_out.append(LeftOut(above + base, "the file is empty (0 bytes)", broken=True))
            elif entry.is_dir():
                identity = _identity(entry.stat())
                if identity not in seen:
                    seen.add(identity)
                    yield above + base
            elif suffix in usable:
                dangling = entry.is_symlink() and not os.path.exists(entry.path)
                reason = "it is a link to a missing file" if dangling else "it is not a file"
                listing.left_out.append(LeftOut(above + base, reason, broken=True))
            elif suffix in refused:
                listing.left_out.append(LeftOut(above + base, refused[suffix], broken=True))
        except OSError as error:
            if suffix in usable or entry.is_symlink():
                listing.left_out.append(LeftOut(above + base, f"it cannot be accessed: {reason_of(error)}", broken=True))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


SOURCE = SourceKind(name="local", help="a folder on this machine.", open=lambda entry: LocalSource(entry.instance_data_dir))

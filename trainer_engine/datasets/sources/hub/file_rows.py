"""Image files of a dataset, with the columns of a table beside them: ``metadata.csv`` or ``metadata.jsonl`` with ``file_name``."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

from trainer_engine.contract.files import FileTooLarge, sha256_of_stream
from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Listing, Suffixes, reason_of
from trainer_engine.datasets.sources.hub.columns import LARGEST_TABLE_BYTES, ColumnSource, follow, read_rows, root_of
from trainer_engine.datasets.sources.hub.options import OBJECT, RowOptions
from trainer_engine.datasets.sources.hub.snapshot import Snapshot

FILE_NAME = "file_name"
MOST_ROWS = 5_000_000


@dataclass(frozen=True)
class FileRowSource(ColumnSource):
    """The image files of one split. Names are those in the dataset."""

    place: str
    snapshot: Snapshot
    options: RowOptions
    files: tuple[str, ...]
    metadata: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        return f"{self.place}@{self.snapshot.commit or self.snapshot.boundary}"

    def list_files(self, suffixes: Suffixes) -> Listing:
        listing = Listing()
        known, conditions = set(self.files), self.options.filter.conditions()
        roots = [(root_of(OBJECT, path, self.columns()), condition) for path, condition in conditions]
        for name in sorted(self._rows.keys() - known):
            listing.left_out.append(LeftOut(name, "its row names a file that is not there", broken=True))
        for name in self.files:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            row = self._rows.get(name, {})
            reasons = [reason for root, condition in roots if (reason := condition(row.get(root)))]
            if reasons:
                listing.left_out.append(LeftOut(name, reasons[0], broken=False))
            elif suffix not in suffixes.usable:
                listing.left_out.append(LeftOut(name, suffixes.refused.get(suffix, f"{suffix} files are not supported"), broken=True))
            else:
                self._add(listing, name)
        listing.files.sort()
        return listing

    def _add(self, listing: Listing, name: str) -> None:
        try:
            found = self.stat(name)
        except OSError as error:
            listing.left_out.append(LeftOut(name, f"it cannot be read: {reason_of(error)}", broken=True))
            return
        if found.size_bytes:
            listing.files.append(found)
        else:
            listing.left_out.append(LeftOut(name, "the file is empty (0 bytes)", broken=True))

    def stat(self, name: str) -> FoundFile:
        return FoundFile(name, os.stat(self.snapshot.path(name)).st_size, self.snapshot.version(name))  # noqa: PTH116

    def open(self, name: str) -> BinaryIO:
        return self.snapshot.open(name)

    def sha256(self, name: str) -> str:
        with self.open(name) as stream:
            return sha256_of_stream(stream)

    def location(self, name: str) -> str:
        return f"{self.identity}/{name}"

    def columns(self) -> Sequence[str]:
        return tuple(dict.fromkeys(column for row in self._rows.values() for column in row))

    def column(self, path: str) -> Callable[[str], Any]:
        root = root_of("caption_column", path, self.columns())
        steps = path.removeprefix(root).lstrip(".")
        return lambda name: follow(self._rows.get(name, {}).get(root), steps)

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        """Name of a file -> its row. Raises OSError for a table that cannot be read."""
        found: dict[str, dict[str, Any]] = {}
        for table in self.metadata:
            for name, row in self._rows_of(table):
                found.setdefault(name, row)
                if len(found) > MOST_ROWS:
                    raise OSError(f"{table} has more than {MOST_ROWS} rows")
        return found

    def _rows_of(self, table: str) -> Iterator[tuple[str, dict[str, Any]]]:
        folder = table.rpartition("/")[0]
        try:
            for row in read_rows(table, self.read_small(table, LARGEST_TABLE_BYTES)):
                name = row.get(FILE_NAME)
                if not isinstance(name, str) or not name:
                    raise OSError(f"a row of {table} has no {FILE_NAME}")
                yield posixpath.normpath(posixpath.join(folder, name)), row
        except FileTooLarge as error:
            raise OSError(f"{table}: {error}") from error
        except ValueError as error:
            raise OSError(str(error)) from error

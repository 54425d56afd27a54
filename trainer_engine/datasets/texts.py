"""Remembers short texts beside images, such as captions, so that a second look reads only the files that have changed."""

from __future__ import annotations

from typing import BinaryIO

from trainer_engine.datasets.index_file import Columns, Indexes, Row, type_of
from trainer_engine.datasets.sources.base import FoundFile, Listing, Source, Suffixes

KIND, VERSION = "texts", 1
ROWS = ((int, int, str), (int, str, str))
"""Types of size, version and text."""
LONGEST_BYTES = 4096
"""A longer text is read each time."""
LARGEST_BYTES = 64 << 20
"""Limit for the remembered texts of one source."""


class RememberedTexts(Source):
    """A source whose ``read_small`` remembers what it read, by name, size and version. Everything else is the other source's."""

    def __init__(self, source: Source, indexes: Indexes) -> None:
        self.place = source.place
        self._source = source
        self._indexes = indexes
        self._known: dict[str, Row] = indexes.read(KIND, VERSION, source, _is_row, _are_rows)
        self._used: dict[str, Row] = {}
        self._fresh = False
        self._bytes = 0

    def read_small(self, name: str, largest: int) -> bytes:
        self._source.refuse_closed(name)
        found = self._source.stat(name)
        row = self._known.get(name)
        if row is None or row[0] != found.size_bytes or row[1] != found.version:
            content = self._source.read_small(name, largest)
            if len(content) != found.size_bytes or len(content) > LONGEST_BYTES:
                return content
            row, self._fresh = (found.size_bytes, found.version, content.decode("latin-1")), True
        self._bytes += found.size_bytes
        if self._bytes <= LARGEST_BYTES:
            self._used[name] = row
        return str(row[2]).encode("latin-1")

    def save(self) -> None:
        """Writes what was read, if something has changed."""
        if self._fresh or len(self._used) != len(self._known):
            self._indexes.write(KIND, VERSION, self._source, self._used)

    @property
    def identity(self) -> str:
        return self._source.identity

    def list_files(self, suffixes: Suffixes) -> Listing:
        return self._source.list_files(suffixes)

    def stat(self, name: str) -> FoundFile:
        return self._source.stat(name)

    def open(self, name: str) -> BinaryIO:
        return self._source.open(name)

    def location(self, name: str) -> str:
        return self._source.location(name)

    def local_path(self, name: str) -> str | None:
        return self._source.local_path(name)

    def sha256(self, name: str) -> str:
        return self._source.sha256(name)


def _is_row(row: Row) -> bool:
    return tuple(map(type, row)) in ROWS


def _are_rows(columns: Columns) -> bool:
    return tuple(map(type_of, columns)) in ROWS

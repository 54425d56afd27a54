"""Rows of parquet files as the files of a dataset: ``train-00000/000017.jpg`` is row 17 of the first shard of the split train."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO

from trainer_engine.datasets.sources.base import FoundFile, LeftOut, Listing, Suffixes, reason_of
from trainer_engine.datasets.sources.hub.columns import ColumnSource, follow, missing_column, root_of
from trainer_engine.datasets.sources.hub.media_column import MediaColumn, media_column
from trainer_engine.datasets.sources.hub.options import OBJECT, RowOptions
from trainer_engine.datasets.sources.hub.parquet import Table, Windows
from trainer_engine.datasets.sources.hub.snapshot import Snapshot
from trainer_engine.datasets.sources.hub.tiles import tile_of

OF_SHARDS = re.compile(r"-of-\d{5}(?:-[0-9a-f]+)?\Z")
TRIED_ROWS = 2
"""Rows at both ends of a file whose images are opened, to see whether the columns width and height are right."""
UNKNOWN_SIZE = 0
"""Size in bytes in the listing: it is known once a row was read."""


@dataclass(frozen=True)
class RowSource(ColumnSource):
    """The rows of the parquet files of one split."""

    place: str
    snapshot: Snapshot
    options: RowOptions
    files: tuple[str, ...] = field(compare=False)

    @cached_property
    def identity(self) -> str:
        """Names the rows by their column as well: two sets may read two columns of the same files."""
        parts = [self.options.column, *([repr(self.options.tile)] if self.options.tile else []), *(["sizes"] if self._sizes else [])]
        place = f"{self.place}@{self.snapshot.commit}" if self.snapshot.commit else os.path.realpath(self.place)
        return f"{place}#{' '.join(parts)}"

    def list_files(self, suffixes: Suffixes) -> Listing:
        listing = Listing(left_out=[LeftOut(name, reason, broken=True) for name, reason in self._broken.items()])
        if not self._tables:
            raise OSError(f"none of its parquet files can be read: {next(iter(self._broken.values()))}")
        for stem, (file, table) in self._tables.items():
            version = self.snapshot.version(file)
            for row, (suffix, reason) in enumerate(self._rows_of(stem, table)):
                name = f"{stem}/{row:06d}{suffix}"
                if reason:
                    listing.left_out.append(LeftOut(name, reason, broken=False))
                elif suffix in suffixes.usable:
                    listing.files.append(FoundFile(name, UNKNOWN_SIZE, version, self._size_in(stem, row)))
                else:
                    why = suffixes.refused.get(suffix, f"{suffix} files are not supported")
                    listing.left_out.append(LeftOut(name, why, broken=True))
        listing.files.sort()
        return listing

    def _rows_of(self, stem: str, table: Table) -> Iterator[tuple[str, str]]:
        """Yields the suffix of each row, and why it is left out; empty if it is used. Reads small columns only."""
        column, conditions = self._media, self.options.filter.conditions()
        roots = [(root_of(OBJECT, path, table.schema.names), condition) for path, condition in conditions]
        leaves = sorted({*column.path_leaves, *(root for root, _ in roots)})
        if not leaves:
            yield from ((column.suffix, "") for _ in range(table.rows))
            return
        for rows in table.read(leaves):
            for row in rows:
                reasons = (condition(row[root]) for root, condition in roots)
                yield column.suffix_of(row), next((reason for reason in reasons if reason), "")

    def bytes_to_measure(self) -> int:
        if self._sizes:
            return 0
        return sum(os.stat(self.snapshot.path(file)).st_size for file, _ in self._tables.values())  # noqa: PTH116

    def named_paths(self) -> Iterator[str]:
        """Yields the paths in rows of files that hold no bytes."""
        for _, table in self._tables.values():
            if self._media.path_leaves and not table.has_values(self._media.bytes_leaf):
                for rows in table.read(self._media.path_leaves):
                    yield from (path for row in rows if (path := self._media.path_in(row)))

    def stat(self, name: str) -> FoundFile:
        file, _, _ = self._find(name)
        return FoundFile(name, UNKNOWN_SIZE, self.snapshot.version(file))

    def size_of(self, name: str) -> int:
        with self.open(name) as stream:
            return stream.seek(0, os.SEEK_END)

    def open(self, name: str) -> BinaryIO:
        if self.options.tile:
            return io.BytesIO(tile_of(self.location(name), lambda: self._open_cell(name), self.options.tile))
        return self._open_cell(name)

    def _open_cell(self, name: str) -> BinaryIO:
        """Opens the bytes in a cell, or the file that the cell names, if it lies in the dataset."""
        _, table, row = self._find(name)
        content = table.cell(self._media.bytes_leaf, row) if self._media.bytes_leaf else None
        if content is not None:
            return io.BytesIO(content)
        path = table.cell(self._media.path_leaves[0], row) if self._media.path_leaves else None
        if path is None:
            raise OSError(f"its row has nothing in the column {self.options.column}")
        return self.snapshot.open(bytes(path).decode("utf-8", "replace"))

    def _size_in(self, stem: str, row: int) -> tuple[int, int] | None:
        """The size of an image in its row, if the columns of sizes are to be trusted."""
        if not self._sizes or self.options.tile:
            return None
        width, height = self._sizes[stem][row]
        return (width, height) if width and height else None

    @cached_property
    def _sizes(self) -> dict[str, list[tuple[int, int]]]:
        """The sizes of all rows by the columns of sizes; empty if they are not to be trusted."""
        names = self.options.size_columns
        if not self.options.trusts_sizes or self.options.has_clips or not set(names) <= set(self.columns()):
            return {}
        found = {}
        for stem, (_, table) in self._tables.items():
            pairs = [tuple(_pixels(row[name]) for name in names) for rows in table.read(names) for row in rows]
            found[stem] = [(width, height) for width, height in pairs]
            tried = {*range(min(TRIED_ROWS, len(pairs))), *range(max(0, len(pairs) - TRIED_ROWS), len(pairs))}
            if not all(self._has_size(f"{stem}/{row:06d}{self._media.suffix}", pairs[row]) for row in tried):
                return {}
        return found

    def _has_size(self, name: str, size: tuple[int, ...]) -> bool:
        return self._media.has_size(lambda: self._open_cell(name), size)

    def location(self, name: str) -> str:
        return f"{self.identity}/{name}"

    def columns(self) -> Sequence[str]:
        return tuple(next(iter(self._tables.values()))[1].schema.names) if self._tables else ()

    def column(self, path: str) -> Callable[[str], Any]:
        root = root_of("caption_column", path, self.columns())
        steps = path.removeprefix(root).lstrip(".")
        values = {}
        for stem, (_, table) in self._tables.items():
            if root not in table.schema.names:
                raise missing_column("caption_column", path, table.schema.names)
            values[stem] = [follow(row[root], steps) for rows in table.read([root]) for row in rows]

        def value(name: str) -> Any:
            stem, _, row = self._split(name)
            return values[stem][row]

        return value

    @cached_property
    def _opened(self) -> tuple[dict[str, tuple[str, Table]], dict[str, str]]:
        """Stem -> (file, its table), and the files that cannot be read with the reason."""
        windows, tables, broken = Windows(), {}, {}
        for stem, file in _stems(self.files).items():
            try:
                tables[stem] = file, Table(lambda file=file: self.snapshot.open(file), windows)  # type: ignore[misc]
            except OSError as error:
                broken[file] = reason_of(error)
        return tables, broken

    @property
    def _tables(self) -> dict[str, tuple[str, Table]]:
        return self._opened[0]

    @property
    def _broken(self) -> dict[str, str]:
        return self._opened[1]

    @cached_property
    def _media(self) -> MediaColumn:
        """Raises WrongField if there is no such column, or if it holds no media."""
        for _, table in self._tables.values():
            found = media_column(table.schema, self.options)
        return found

    def _split(self, name: str) -> tuple[str, str, int]:
        stem, _, last = name.rpartition("/")
        number = os.path.splitext(last)[0]  # noqa: PTH122
        if stem not in self._tables or not number.isdecimal():
            raise OSError(next(iter(self._broken.values()))) if self._broken else FileNotFoundError(2, "there is no such row")
        return stem, last, int(number)

    def _find(self, name: str) -> tuple[str, Table, int]:
        stem, _, row = self._split(name)
        return *self._tables[stem], row


def _pixels(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _stems(files: Sequence[str]) -> dict[str, str]:
    """Returns names for files without the number of shards; with their folders if two would have the same one."""
    bare = {file: OF_SHARDS.sub("", file.rpartition("/")[2].removesuffix(".parquet")) for file in files}
    if len(set(bare.values())) < len(files):
        bare = {file: file.removesuffix(".parquet") for file in files}
    return {stem: file for file, stem in bare.items()}

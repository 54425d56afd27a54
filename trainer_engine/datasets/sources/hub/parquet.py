"""Reads parquet files: whole columns of small values, and single cells of large ones.

A cell cannot be read alone: parquet stores a column in compressed pages. So a file is read in windows of consecutive rows, of which a few
are kept. A window holds about ``WINDOW_BYTES``, whatever the size of a row group.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, BinaryIO

from pyarrow import parquet

from trainer_engine.datasets.tables import damage

WINDOW_BYTES = 16 << 20
KEPT_BYTES = 256 << 20
LARGEST_CELL_BYTES = 512 << 20
LARGEST_FOOTER_BYTES = 64 << 20
MOST_PARTS = 1_000_000
"""Limit of columns and row groups in a footer."""
MOST_ROWS = 50_000_000
MOST_UNPACKED = 200
"""How many times larger than its compressed bytes a column of images may be. Images do not compress."""
ROWS_AT_ONCE = 8_192
MOST_OPEN = 16
"""Files of a dataset that are open at once; it may have thousands."""
READ_BYTES = 1 << 20


@contextmanager
def reading() -> Iterator[None]:
    """Turns what the library raises for a damaged file into OSError."""
    try:
        yield
    except OSError:
        raise
    except damage() as error:
        first = str(error).strip().split("\n")[0][:200]
        raise OSError(f"it is not a complete parquet file: {first or type(error).__name__}") from error


@dataclass
class Windows:
    """The windows that were read last, of all files of a dataset together. It is thread-safe."""

    largest: int = KEPT_BYTES
    _open: OrderedDict[Table, None] = field(default_factory=OrderedDict)
    _kept: OrderedDict[tuple[object, int], Any] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def left_open(self, table: Table) -> None:
        """Notes that a file is open, and closes the one that was not read for longest."""
        with self._lock:
            self._open[table] = None
            self._open.move_to_end(table)
            closed = self._open.popitem(last=False)[0] if len(self._open) > MOST_OPEN else None
        if closed:
            closed.close()

    def get(self, key: tuple[object, int]) -> Any | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: tuple[object, int], window: Any) -> None:
        """Keeps a window, and forgets those that were not used for longest."""
        with self._lock:
            self._bytes += window.nbytes - (self._kept.pop(key).nbytes if key in self._kept else 0)
            self._kept[key] = window
            while self._bytes > self.largest and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


class Table:
    """One parquet file. Methods may be called from several threads. It stays open only while cells are read one after another."""

    def __init__(self, open_file: Callable[[], BinaryIO], windows: Windows) -> None:
        """Raises OSError for a file that is not parquet."""
        self._windows = windows
        self._lock = threading.Lock()
        self._cursor: _Cursor | None = None
        self._open_file = open_file
        with reading(), self._open_file() as stream:
            file = _parquet_file(stream)
            self.schema = file.schema_arrow
            self._metadata = file.metadata
        self.rows: int = self._metadata.num_rows
        if not 0 <= self.rows <= MOST_ROWS:
            raise OSError(f"it says that it holds {self.rows} rows")

    def close(self) -> None:
        """Closes the file, until a cell is read again."""
        self._cursor = None

    @cached_property
    def _starts(self) -> list[int]:
        """The first row of each row group, and the number of rows."""
        starts = [0]
        for group in range(self._metadata.num_row_groups):
            starts.append(starts[-1] + self._metadata.row_group(group).num_rows)
        return starts

    def read(self, leaves: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Yields the rows in order, some thousands at once, with nothing but these columns or parts of columns. Raises OSError."""
        with reading(), self._open_file() as stream:
            for batch in _parquet_file(stream, self._metadata).iter_batches(
                batch_size=ROWS_AT_ONCE, columns=list(leaves), use_threads=False
            ):
                yield batch.to_pylist()

    def _column(self, group: int, leaf: str) -> Any | None:
        """Returns what the footer says of a column in a row group."""
        facts = self._metadata.row_group(group)
        columns = (facts.column(number) for number in range(facts.num_columns))
        return next((column for column in columns if column.path_in_schema == leaf), None)

    def has_values(self, leaf: str) -> bool:
        """Whether a column may have values, by what the footer says of it."""
        for group in range(self._metadata.num_row_groups if leaf else 0):
            facts = self._metadata.row_group(group)
            column = self._column(group, leaf)
            counted = column.statistics.null_count if column and column.statistics and column.statistics.has_null_count else None
            if counted is None or counted < facts.num_rows:
                return True
        return False

    def cell(self, leaf: str, row: int) -> Any:
        """Returns one value of a large column, such as ``image.bytes``; None if it is empty. Raises OSError."""
        if not 0 <= row < self.rows:
            raise FileNotFoundError(2, "there is no such row")
        group = next(number for number, start in enumerate(self._starts[1:]) if row < start)
        size = self._window_rows(group, leaf)
        number, inside = divmod(row - self._starts[group], size)
        key = ((id(self), leaf, group), number)
        window = self._windows.get(key)
        if window is None:
            with self._lock, reading():
                window = self._windows.get(key)
                if window is None:
                    window = self._read_window(leaf, group, number, size)
        with reading():
            value = window[inside]
            if len(window) == 1 and window.nbytes > LARGEST_CELL_BYTES:
                raise OSError(f"a cell of its column {leaf} is larger than {LARGEST_CELL_BYTES >> 20} MiB")
            return value.as_buffer() if hasattr(value, "as_buffer") else value.as_py()

    def _window_rows(self, group: int, leaf: str) -> int:
        column, rows = self._column(group, leaf), int(self._metadata.row_group(group).num_rows)
        unpacked, packed = (int(column.total_uncompressed_size), int(column.total_compressed_size)) if column else (0, 0)
        if unpacked > MOST_UNPACKED * max(packed, 1) + WINDOW_BYTES:
            raise OSError(f"its column {leaf} unpacks to {unpacked / max(packed, 1):.0f} times its size")
        return max(1, min(rows, rows * WINDOW_BYTES // max(unpacked, 1), ROWS_AT_ONCE))

    def _read_window(self, leaf: str, group: int, number: int, size: int) -> Any:
        """Reads on from the last window if this one follows it, otherwise from the start of the row group.

        Windows on the way are kept too: several threads read the same part of a file, in no order.
        """
        cursor, self._cursor = self._cursor, None
        if cursor is None or cursor.place != (leaf, group) or cursor.reached > number:
            file = _parquet_file(self._open_file(), self._metadata)
            cursor = _Cursor((leaf, group), file.iter_batches(batch_size=size, row_groups=[group], columns=[leaf], use_threads=False))
        for batch in cursor.batches:
            window = _values(batch, leaf)
            self._windows.keep(((id(self), leaf, group), cursor.reached), window)
            cursor.reached += 1
            if cursor.reached > number:
                self._cursor = cursor
                self._windows.left_open(self)
                return window
        raise OSError("it has fewer rows than it says")


@dataclass
class _Cursor:
    """Where the reading of a row group stands."""

    place: tuple[str, int]
    """Column and number of the row group."""
    batches: Iterator[Any]
    """The windows that follow. The file is closed with it."""
    reached: int = 0
    """Number of windows that were read."""


def _parquet_file(stream: BinaryIO, metadata: Any = None) -> Any:
    return parquet.ParquetFile(
        stream,
        metadata=metadata,
        buffer_size=READ_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,
        thrift_string_size_limit=LARGEST_FOOTER_BYTES,
        thrift_container_size_limit=MOST_PARTS,
    )


def _values(batch: Any, leaf: str) -> Any:
    """Returns the array of a column, or of a part of a column of objects."""
    name = batch.schema.names[0]
    values = batch.column(0)
    for step in leaf.removeprefix(name).split("."):
        values = values.flatten()[values.type.get_field_index(step)] if step else values
    return values

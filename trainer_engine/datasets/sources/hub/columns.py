"""What sources of rows offer with their files: the values of columns, and the tables of text files."""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trainer_engine.contract.files import read_document
from trainer_engine.datasets.sources.base import Source, WrongField

LARGEST_TABLE_BYTES = 256 << 20
"""Limit of a table in a text file, such as metadata.jsonl."""
MOST_CELL_CHARACTERS = 1 << 20


class ColumnSource(Source):
    """A source whose files are rows of a table with further columns."""

    @abstractmethod
    def columns(self) -> Sequence[str]:
        """Returns the names of the columns. Raises OSError."""

    @abstractmethod
    def column(self, path: str) -> Callable[[str], Any]:
        """Returns the function from the name of a file to the value of a column in its row; None if it has none.

        ``path`` is the name of a column, or leads into a column of objects: ``captions.short``. Raises OSError, WrongField if there is no
        such column.
        """


def missing_column(field: str, path: str, columns: Sequence[str]) -> WrongField:
    """Returns the error of a field that names a column which is not there."""
    return WrongField(field, "column_not_found", f"there is no column {path!r}", choices=columns)


def root_of(field: str, path: str, columns: Sequence[str]) -> str:
    """Returns the column that a dotted path starts in. Raises WrongField if there is none."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        if ".".join(parts[:count]) in columns:
            return ".".join(parts[:count])
    raise missing_column(field, path, columns)


def follow(cell: Any, steps: str) -> Any:
    """Returns what lies in a cell at the rest of a dotted path; None if there is nothing."""
    for step in steps.split(".") if steps else ():
        cell = cell.get(step) if isinstance(cell, Mapping) else None
    return cell


def read_rows(name: str, content: bytes) -> Iterator[dict[str, Any]]:
    """Yields the rows of a ``.csv`` or ``.jsonl`` table. Raises ValueError, with the line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text at byte {error.start}") from None
    if name.endswith(".csv"):
        csv.field_size_limit(MOST_CELL_CHARACTERS)
        try:
            for cells in csv.DictReader(io.StringIO(text, newline="")):
                yield {column: cell for column, cell in cells.items() if column is not None}  # cells beyond the last column have None
        except csv.Error as error:
            raise ValueError(f"{name} is no table: {error}") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = read_document(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} of {name} is not a JSON object")
        yield row

"""Reads columns of tables: parquet, JSON lines, and JSON lists of objects. Used for captions, sizes and addresses of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_engine.contract.files import open_regular, read_document, read_small
from trainer_engine.datasets.text import NotText, decode

if TYPE_CHECKING:
    from trainer_engine.config.datasets.object_fields import TableFile
    from trainer_engine.datasets.sources.base import FoundFile

BATCH_ROWS = 1_024
LARGEST_JSON_BYTES = 1 << 28
LONGEST_LINE_BYTES = 1 << 22
MOST_NAMED = 20
"""Number of columns that a message lists."""
LARGEST_EDGE = 1 << 20

Row = tuple[Any, ...]
NOTHING: Row = (None, None)


class UnusableTable(ValueError):
    """A table cannot be read, or lacks a column. The message names the file, and the line if it has lines."""


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the values of these columns in each row of a table. Raises UnusableTable."""
    reader = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _json)
    try:
        yield from reader(path, tuple(columns))
    except OSError as error:
        raise UnusableTable(f"{path} cannot be read: {error.strerror or error}") from error


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with open_regular(path) as stream:
        try:
            table = ParquetFile(stream)
            _refuse_missing(path, columns, table.schema_arrow.names)
            for batch in table.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[:1]
            raise UnusableTable(f"{path} is damaged, or no parquet table: {''.join(reason)[:200]}") from error


def _json_lines(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    with open_regular(path) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            if len(line) > LONGEST_LINE_BYTES:
                raise UnusableTable(f"{path}: line {number} is longer than {LONGEST_LINE_BYTES >> 20} MiB")
            if line.strip():
                yield _row(path, f"line {number}", _document(path, line, f"line {number}"), columns)


def _json(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    document = _document(path, read_small(path, LARGEST_JSON_BYTES), "it")
    if not isinstance(document, list):
        raise UnusableTable(f"{path} holds no list of objects")
    for number, row in enumerate(document, 1):
        yield _row(path, f"object {number}", row, columns)


def _document(path: Path, content: bytes, where: str) -> object:
    try:
        return read_document(decode(content))
    except NotText as error:
        raise UnusableTable(f"{path}: {where} {error}") from None
    except ValueError:
        raise UnusableTable(f"{path}: {where} is not valid JSON, or is cut off") from None


def _row(path: Path, where: str, row: object, columns: tuple[str, ...]) -> Row:
    if not isinstance(row, Mapping):
        raise UnusableTable(f"{path}: {where} is no object")
    if columns[0] not in row:
        _refuse_missing(path, columns[:1], row)
    return tuple(row.get(name) for name in columns)


def _refuse_missing(path: Path, columns: Iterable[str], there: Iterable[str]) -> None:
    known = [str(name) for name in there]
    missing = [name for name in columns if name not in known]
    if missing:
        more = ", …" if len(known) > MOST_NAMED else ""
        raise UnusableTable(f"{path} has no column {missing[0]!r}; it has {', '.join(known[:MOST_NAMED])}{more}")


class FileRows:
    """The rows of a table, by the file that each is about."""

    def __init__(self, table: TableFile, columns: Sequence[str]) -> None:
        """Reads ``columns``. Of several rows for a file, the last one counts. Raises UnusableTable."""
        self._with_suffix = table.identifier_includes_extension
        self._rows: dict[str, Row] = {}
        for name, *values in rows_of(Path(table.path), (table.filename_column, *columns)):
            if isinstance(name, (str, int)) and not isinstance(name, bool):
                self._rows[_plain(str(name))] = tuple(values)

    def of(self, name: str) -> Row | None:
        """Returns the values of the row about a file, or None if there is none."""
        return self._rows.get(name if self._with_suffix else os.path.splitext(name)[0])  # noqa: PTH122 - text, for speed

    def why_missing(self, name: str) -> str:
        """Returns why a file has no row, for people."""
        other = os.path.splitext(name)[0] if self._with_suffix else name  # noqa: PTH122
        hint = f"; it has one for {other}: change identifier_includes_extension" if other in self._rows else ""
        return f"the table has no row for it{hint}"


def _plain(name: str) -> str:
    """Returns a name of a table as sources write it."""
    return name.replace("\\", "/").removeprefix("./").lstrip("/")


class FileSizes:
    """The sizes of files in a table."""

    def __init__(self, table: TableFile) -> None:
        """Raises UnusableTable."""
        assert table.width_column is not None and table.height_column is not None
        self._rows = FileRows(table, (table.width_column, table.height_column))

    def of(self, name: str) -> tuple[int, int] | None:
        """Returns (width, height) of a file, or None if the table has no row for it, or one that holds no size."""
        width, height = self._rows.of(name) or NOTHING
        return (int(width), int(height)) if _is_edge(width) and _is_edge(height) else None

    def added_to(self, files: Iterable[FoundFile]) -> list[FoundFile]:
        """Returns the files with their sizes."""
        return [file._replace(size=self.of(file.name)) for file in files]


def _is_edge(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= LARGEST_EDGE and value % 1 == 0

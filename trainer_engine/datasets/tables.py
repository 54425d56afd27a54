"""Reads columns of tables: parquet, JSON lines, and JSON lists of objects. Used for captions, sizes and addresses of files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer_engine.contract.files import open_regular, read_document, read_small
from trainer_engine.datasets.text import NotText, decode

BATCH_ROWS = 1_024
LARGEST_JSON_BYTES = 1 << 28
LONGEST_LINE_BYTES = 1 << 22
MOST_NAMED = 20
"""Number of columns that a message lists."""

Row = tuple[Any, ...]


class UnusableTable(ValueError):
    """A table cannot be read, or lacks a column. The message names the file, and the line if it has lines."""


def damage() -> tuple[type[Exception], ...]:
    """Returns what pyarrow raises for a damaged file: its own exceptions, OSError for broken headers, and those of Python for what Python
    has no value for, such as broken text, years beyond 9999, and names given twice."""
    import pyarrow

    return (pyarrow.ArrowException, OSError, ValueError, LookupError, OverflowError, MemoryError)


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the values of these columns in each row of a table. Raises UnusableTable."""
    reader = {".parquet": _parquet, ".jsonl": _json_lines}.get(path.suffix.lower(), _json)
    try:
        yield from reader(path, tuple(columns))
    except OSError as error:
        raise UnusableTable(f"{path} cannot be read: {error.strerror or error}") from error


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the values of these columns in each row of a CSV file, None for what a row lacks. Raises UnusableTable."""
    try:
        lines = io.StringIO(decode(read_small(path, LARGEST_JSON_BYTES)), newline="")
    except NotText as error:
        raise UnusableTable(f"{path} {error}") from None
    except OSError as error:
        raise UnusableTable(f"{path} cannot be read: {error.strerror or error}") from error
    reader = csv.reader(lines, strict=True)
    try:
        head = [name.strip() for name in next(reader, [])]
        _refuse_missing(path, columns, head)
        places = [head.index(name) for name in columns]
        for row in reader:
            if row:
                yield tuple(row[place] if place < len(row) else None for place in places)
    except csv.Error as error:
        raise UnusableTable(f"{path}: line {reader.line_num} is not CSV: {error}") from None


def _parquet(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with open_regular(path) as stream:
        try:
            table = ParquetFile(stream)
            _refuse_missing(path, columns, table.schema_arrow.names)
            for batch in table.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
        except UnusableTable:
            raise
        except damage() as error:
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

"""Files that cache what is known of the files of a source: sizes of images, short texts. Losing one only costs time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import read_document, read_small
from trainer_engine.datasets.sources.base import Source

Row = tuple[Any, ...]
Columns = Sequence[Sequence[Any]]
"""The first values of all rows, the second values, and so on."""
SUFFIX = ".json"
LARGEST_BYTES = 256 << 20
"""Limit of one file that is read."""


@dataclass(frozen=True)
class Indexes:
    """The folders of such files."""

    own: Path | None = None
    """Where they are written; None for nowhere."""
    others: tuple[Path, ...] = ()
    """Where they are only read, if one there is newer."""
    least_files: int = 0
    """Sources with fewer files are examined anew each time, and nothing is written about them."""
    largest_bytes: int | None = None
    """Limit for all files in ``own`` together; the ones that were not written for the longest time are removed. None for no limit."""
    folder_mode: int = 0o777
    """Mode of ``own`` when it is made, which limits that of its files."""

    @classmethod
    def of(cls, place: Path | Indexes | None) -> Indexes:
        return place if isinstance(place, Indexes) else cls(place)

    def read(
        self, kind: str, version: int, source: Source, is_row: Callable[[Row], bool], are_rows: Callable[[Columns], bool]
    ) -> dict[str, Row]:
        """Returns the rows about a source by file name; none if the file is missing, damaged or of another version.

        ``is_row``: whether a row has the right types and possible values. ``are_rows`` says in less time that all have; where it does
        not, each is looked at.
        """
        folders = [folder for folder in (self.own, *self.others) if folder]
        newest = max((folder / _name_of(kind, source) for folder in folders), key=_written, default=None)
        try:
            document = read_document(read_small(newest, LARGEST_BYTES)) if newest else None
        except (OSError, ValueError):
            return {}
        if not isinstance(document, dict) or document.get("version") != version:
            return {}
        names: Any = document.get("files")
        columns: Any = document.get("rows")
        if not _are_columns(names, columns):
            return {name: row for name, row in _old_rows(names) if is_row(row)}
        rows = zip(names, zip(*columns, strict=True), strict=True)
        return dict(rows) if are_rows(columns) else {name: row for name, row in rows if is_row(row)}

    def write(self, kind: str, version: int, source: Source, rows: Mapping[str, Row]) -> None:
        if self.own is None or len(rows) < self.least_files:
            return
        # Columns are read twice as fast as rows. Lone surrogates of undecodable names survive as \udcXX escapes.
        document = {"version": version, "files": list(rows), "rows": list(zip_longest(*rows.values()))}
        content = json.dumps(document, separators=(",", ":")).encode("ascii")
        # A full or read-only disk only makes the next scan slower; files that must be written there report it.
        with suppress(OSError):
            self.own.mkdir(mode=self.folder_mode, parents=True, exist_ok=True)
            write_atomically(self.own / _name_of(kind, source), content)
            if self.largest_bytes is not None:
                _prune(self.own, self.largest_bytes)


def type_of(column: Sequence[Any]) -> type | None:
    """Returns the type of all values of a column, or None if there are several."""
    found = set(map(type, column))
    return found.pop() if len(found) == 1 else None


def _are_columns(names: Any, columns: Any) -> bool:
    """Whether a document has the names of files and columns of the same length."""
    are_lists = isinstance(names, list) and isinstance(columns, list) and all(isinstance(one, list) for one in columns)
    return are_lists and type_of(names) is str and all(len(one) == len(names) for one in columns)


def _old_rows(rows: Any) -> Iterable[tuple[str, Row]]:
    """Returns (name, row) from a document that has the rows by name, as they were written before."""
    return ((name, tuple(row)) for name, row in rows.items() if isinstance(row, list)) if isinstance(rows, dict) else ()


def _name_of(kind: str, source: Source) -> str:
    return f"{kind}-{hashlib.sha256(os.fsencode(source.identity)).hexdigest()[:24]}{SUFFIX}"


def _written(path: Path) -> int:
    """Returns when a file was written, 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _prune(folder: Path, largest_bytes: int) -> None:
    """Removes the oldest files until the others have ``largest_bytes`` together. Raises OSError."""
    total = 0
    for path in sorted(folder.glob(f"*{SUFFIX}"), key=_written, reverse=True):
        total += path.stat().st_size
        if total > largest_bytes:
            path.unlink(missing_ok=True)

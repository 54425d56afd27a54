"""The rows of a table that are about the files of a dataset: ``parquet``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer_engine.datasets.tables import Row, UnusableTable, rows_of

if TYPE_CHECKING:
    from trainer_engine.config.datasets.object_fields import TableFile
    from trainer_engine.datasets.sources.base import FoundFile

LARGEST_EDGE = 1 << 20
NOTHING: Row = (None, None)


class UnusableSizes(UnusableTable):
    """A table of sizes cannot be read."""


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
        """Raises UnusableSizes."""
        assert table.width_column is not None and table.height_column is not None
        try:
            self._rows = FileRows(table, (table.width_column, table.height_column))
        except UnusableTable as error:
            raise UnusableSizes(str(error)) from error

    def of(self, name: str) -> tuple[int, int] | None:
        """Returns (width, height) of a file, or None if the table has no row for it, or one that holds no size."""
        width, height = self._rows.of(name) or NOTHING
        return (int(width), int(height)) if _is_edge(width) and _is_edge(height) else None

    def added_to(self, files: Iterable[FoundFile]) -> list[FoundFile]:
        """Returns the files with their sizes."""
        return [file._replace(size=self.of(file.name)) for file in files]


def _is_edge(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= LARGEST_EDGE and value % 1 == 0

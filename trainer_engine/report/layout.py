"""Arranges images in a table: a row for each validation, a column for each prompt, size, label and number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.report.journal import ReportImage

MOST_ROWS = 24
MOST_COLUMNS = 32
NUMBER = re.compile(r"_(\d{1,2})_\d+x\d+$")


@dataclass(frozen=True)
class Column:
    """Images that differ only in the step."""

    name: str
    prompt: str
    size: tuple[int, int]
    number: int
    """Number of the image among those of one prompt and size, from 0."""


@dataclass(frozen=True)
class Row:
    """One validation."""

    step: int
    is_base: bool


@dataclass(frozen=True)
class ImageTable:
    """The images of a run in rows and columns."""

    rows: list[Row]
    columns: list[Column]
    files: dict[tuple[Row, Column], Path]
    """A missing pair has no image."""
    left_out: str = ""
    """Says how many rows and columns are shown; empty if all are."""


def tabulate(images: Sequence[ReportImage]) -> ImageTable:
    """Arrange images; the base model is the first row.

    At most ``MOST_ROWS`` rows are kept, evenly spread from the first to the last, and the first ``MOST_COLUMNS`` columns.
    """
    files: dict[tuple[Row, Column], Path] = {}
    same: dict[tuple[Row, str, str, tuple[int, int]], list[Path]] = {}
    for image in images:
        row = Row(image.step, image.is_base)
        known = same.setdefault((row, image.name, image.prompt, image.size), [])
        if image.file not in known:  # an image generated again at the same step has the same file
            known.append(image.file)
        files[row, Column(image.name, image.prompt, image.size, _number(image.file, known))] = image.file
    rows = sorted({row for row, _ in files}, key=lambda row: (not row.is_base, row.step))
    columns = list(dict.fromkeys(column for _, column in files))
    prompts = list(dict.fromkeys(column.prompt for column in columns))
    columns.sort(key=lambda column: prompts.index(column.prompt))  # images of the averaged weights are next to those of the live weights
    return ImageTable(evenly(rows, MOST_ROWS), columns[:MOST_COLUMNS], files, _left_out(len(rows), len(columns)))


def _number(file: Path, known: Sequence[Path]) -> int:
    """The number in the file name, because earlier images may be missing; for other names, its position among the known files."""
    counted = NUMBER.search(file.stem)
    return int(counted[1]) if counted else known.index(file)


def _left_out(rows: int, columns: int) -> str:
    parts = [f"{MOST_ROWS} of {rows} validations" if rows > MOST_ROWS else ""]
    parts.append(f"{MOST_COLUMNS} of {columns} columns" if columns > MOST_COLUMNS else "")
    return ", ".join(part for part in parts if part)


def evenly(things: Iterable[Row], most: int) -> list[Row]:
    """At most ``most`` rows, evenly spread, including the first and the last."""
    every = list(things)
    if len(every) <= most:
        return every
    return [every[round(place * (len(every) - 1) / (most - 1))] for place in range(most)]

"""Which image stands where: a row for each validation, a column for each prompt, size, label and number."""

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
    """What was drawn again and again."""

    name: str
    prompt: str
    size: tuple[int, int]
    number: int
    """Counts the images of one prompt and size, from 0."""


@dataclass(frozen=True)
class Row:
    """One validation."""

    step: int
    is_base: bool


@dataclass(frozen=True)
class ImageTable:
    """The images of a run as they are shown."""

    rows: list[Row]
    columns: list[Column]
    files: dict[tuple[Row, Column], Path]
    """What is not here was not drawn."""
    left_out: str = ""
    """A sentence about rows and columns that are not shown; empty where all are."""


def tabulate(images: Sequence[ReportImage]) -> ImageTable:
    """The base model first. Of too many validations, some from the first to the last; of too many columns, the first ones."""
    files: dict[tuple[Row, Column], Path] = {}
    same: dict[tuple[Row, str, str, tuple[int, int]], list[Path]] = {}
    for image in images:
        row = Row(image.step, image.is_base)
        told = same.setdefault((row, image.name, image.prompt, image.size), [])
        if image.file not in told:  # drawn again at the same step, it lies in the same file
            told.append(image.file)
        files[row, Column(image.name, image.prompt, image.size, _number(image.file, told))] = image.file
    rows = sorted({row for row, _ in files}, key=lambda row: (not row.is_base, row.step))
    columns = list(dict.fromkeys(column for _, column in files))
    prompts = list(dict.fromkeys(column.prompt for column in columns))
    columns.sort(key=lambda column: prompts.index(column.prompt))  # what the average drew stands beside what the live weights drew
    return ImageTable(evenly(rows, MOST_ROWS), columns[:MOST_COLUMNS], files, _left_out(len(rows), len(columns)))


def _number(file: Path, told: Sequence[Path]) -> int:
    """As the file is called: an earlier image of the prompt may be missing. Of another name, how many were told before."""
    counted = NUMBER.search(file.stem)
    return int(counted[1]) if counted else told.index(file)


def _left_out(rows: int, columns: int) -> str:
    parts = [f"{MOST_ROWS} of {rows} validations" if rows > MOST_ROWS else ""]
    parts.append(f"{MOST_COLUMNS} of {columns} columns" if columns > MOST_COLUMNS else "")
    return ", ".join(part for part in parts if part)


def evenly(things: Iterable[Row], most: int) -> list[Row]:
    """At most that many, evenly spread; the first and the last are among them."""
    every = list(things)
    if len(every) <= most:
        return every
    return [every[round(place * (len(every) - 1) / (most - 1))] for place in range(most)]

"""Conditions for rows: ``filter_func`` of the object ``huggingface``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.json_fields import WrongValue
from trainer_engine.contract.files import read_document

QUALITY_COLUMN = "quality_assessment"
COLLECTION_COLUMN = "collection"
KNOWN = frozenset(("quality_thresholds", "quality_column", "collection", "min_width", "min_height"))
MOST_VALUES = 1_000

Condition = Callable[[Any], str]
"""Value of a column -> why its row is left out; empty if the row is used."""


@dataclass(frozen=True)
class RowFilter:
    """The rows that are used. Without any condition: all."""

    thresholds: tuple[tuple[str, float], ...] = ()
    """(name of a quality, its least value)"""
    quality_column: str = QUALITY_COLUMN
    """Column of objects with the qualities of a row."""
    collections: tuple[str, ...] = ()
    """Values of the column ``collection`` of which a row must have one; empty: any."""
    min_width: int = 0
    min_height: int = 0

    def conditions(self) -> Sequence[tuple[str, Condition]]:
        """Returns each condition with the column that it reads."""
        found: list[tuple[str, Condition]] = []
        for name, least in self.thresholds:
            found.append((self.quality_column, lambda cell, name=name, least=least: _too_low(cell, name, least)))  # type: ignore[misc]
        if self.collections:
            found.append((COLLECTION_COLUMN, self._in_no_collection))
        for column, smallest in (("width", self.min_width), ("height", self.min_height)):
            if smallest:
                found.append((column, lambda cell, column=column, least=smallest: _too_small(cell, column, least)))  # type: ignore[misc]
        return found

    def _in_no_collection(self, cell: object) -> str:
        values = cell if isinstance(cell, list) else [cell]
        if any(str(value) in self.collections for value in values):
            return ""
        return f"its collection {str(cell)[:60]!r} is not among those of filter_func"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if math.isnan(number) else number


def _too_low(cell: object, name: str, least: float) -> str:
    if isinstance(cell, str):
        try:
            cell = read_document(cell)
        except ValueError:
            cell = None
    quality = _number(cell.get(name) if isinstance(cell, Mapping) else None)
    if quality is None:
        return f"its row does not give the quality {name}"
    return "" if quality >= least else f"its {name} of {quality:g} is below the threshold {least:g}"


def _too_small(cell: object, column: str, least: int) -> str:
    size = _number(cell)
    if size is None:
        return f"its row does not give its {column}"
    return "" if size >= least else f"its {column} of {size:g} is below min_{column}={least}"


def text_of(value: object) -> str:
    """Returns a text without blanks around it. Raises WrongValue."""
    if not isinstance(value, str):
        raise WrongValue("is not text", code="not_text")
    return value.strip()


def any_number(value: object) -> float:
    """Returns a finite number, which may be written as text. Raises WrongValue."""
    try:
        found = _number(float(value) if isinstance(value, str) else value)
    except ValueError:
        found = None
    if found is None or math.isinf(found):
        raise WrongValue("holds something that is not a number", code="not_a_number")
    return found


def whole_number(value: object) -> int:
    """Returns a whole number, which may be written as text. Raises WrongValue."""
    found = any_number(value)
    if found != int(found):
        raise WrongValue("holds something that is not a whole number", code="not_a_whole_number")
    return int(found)


def read_filter(given: Mapping[str, Any]) -> RowFilter:
    """Reads ``filter_func``. Raises WrongValue."""
    unknown = given.keys() - KNOWN
    if unknown:
        raise WrongValue(f"has no condition {min(unknown)[:60]!r}", code="unknown_field", hint=f"one of {', '.join(sorted(KNOWN))}")
    thresholds = given.get("quality_thresholds") or {}
    collections = given.get("collection") or []
    if not isinstance(thresholds, Mapping):
        raise WrongValue("needs an object in quality_thresholds", code="not_an_object", hint='{"name": least value}')
    listed = collections if isinstance(collections, list) else [collections]
    if len(thresholds) + len(listed) > MOST_VALUES:
        raise WrongValue(f"has more than {MOST_VALUES} values", code="too_many")
    return RowFilter(
        tuple((str(name), any_number(least)) for name, least in thresholds.items()),
        text_of(given.get("quality_column") or QUALITY_COLUMN),
        tuple(text_of(value) for value in listed),
        _size(given, "min_width"),
        _size(given, "min_height"),
    )


def _size(given: Mapping[str, Any], name: str) -> int:
    size = whole_number(given.get(name) or 0)
    if not 0 <= size <= 1_000_000:
        raise WrongValue(f"has a {name} that is out of range", code="out_of_range", hint="a number of pixels")
    return size

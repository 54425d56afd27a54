"""Captions in a table with a row for each file: parquet, JSON lines or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trainer_engine.datasets.captions.base import CaptionsOf, CaptionStrategy, NoCaption
from trainer_engine.datasets.sources.base import Source
from trainer_engine.datasets.tables import FileRows

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet


def _prepare(entry: ImageSet, source: Source) -> CaptionsOf:
    table = entry.parquet
    assert table is not None, "parsing demands it"
    fallback = (table.fallback_caption_column,) if table.fallback_caption_column else ()
    rows, count = FileRows(table, (*table.caption_columns, *fallback)), len(table.caption_columns)

    def captions_of(name: str) -> tuple[str, ...]:
        row = rows.of(name)
        if row is None:
            raise NoCaption(rows.why_missing(name))
        found = tuple(texts_in(row[:count])) or tuple(texts_in(row[count:]))
        if not found:
            raise NoCaption("its row in the table has no caption")
        return found

    return captions_of


def texts_in(cells: tuple[Any, ...]) -> Iterator[str]:
    """Yields the texts in cells that hold texts or lists of them, without blank ones."""
    for cell in cells:
        for text in cell if isinstance(cell, list) else [cell]:
            if isinstance(text, str) and text.strip():
                yield text.strip()


STRATEGIES = (CaptionStrategy(name="parquet", help="columns of the table in parquet.", prepare=_prepare),)

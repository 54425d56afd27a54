"""Captions in tables: the CSV file with the addresses of a dataset, and tables with a row for each file (parquet, JSON lines, JSON)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.captions.base import CaptionsOf, CaptionStrategy, NoCaption
from trainer_engine.datasets.file_rows import FileRows
from trainer_engine.datasets.sources.base import Source
from trainer_engine.datasets.sources.csv import CsvSource
from trainer_engine.datasets.tables import csv_rows

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet


class CsvCaptionFields(OptionGroup):
    """Fields of datasets with captions in a CSV file."""

    csv_caption_column: str = option(..., "Column of the captions in csv_file.")


def _by_address(entry: ImageSet, source: Source) -> CaptionsOf:
    if not isinstance(source, CsvSource):
        raise ValueError("it needs type=csv")
    columns = (source.url_column, entry.own(CsvCaptionFields).csv_caption_column)
    by_url = {url.strip(): caption for url, caption in csv_rows(Path(source.place), columns) if url}
    address_of = source.addresses_by_name()

    def captions_of(name: str) -> tuple[str, ...]:
        caption = (by_url.get(address_of(name)) or "").strip()
        if not caption:
            raise NoCaption("its row in csv_file has no caption")
        return (caption,)

    return captions_of


def _by_file(entry: ImageSet, source: Source) -> CaptionsOf:
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


STRATEGIES = (
    CaptionStrategy(name="csv", help="a column of csv_file.", prepare=_by_address, fields=CsvCaptionFields),
    CaptionStrategy(name="parquet", help="columns of the table in parquet.", prepare=_by_file),
)

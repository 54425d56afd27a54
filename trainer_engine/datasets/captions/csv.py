"""Captions in the CSV file that lists the addresses of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.captions.base import CaptionsOf, CaptionStrategy, NoCaption
from trainer_engine.datasets.sources.base import Source
from trainer_engine.datasets.sources.csv import CsvSource
from trainer_engine.datasets.tables import csv_rows

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet


class CsvCaptionFields(OptionGroup):
    """Fields of datasets with captions in a CSV file."""

    csv_caption_column: str = option(..., "Column of the captions in csv_file.")


def _prepare(entry: ImageSet, source: Source) -> CaptionsOf:
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


STRATEGIES = (CaptionStrategy(name="csv", help="a column of csv_file.", prepare=_prepare, fields=CsvCaptionFields),)

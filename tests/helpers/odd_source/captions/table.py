"""Captions in a table of its own: a row for each image. The format knows the names of the strategy and of its first field."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.datasets.captions.base import CaptionsOf, CaptionStrategy, NoCaption
from trainer_engine.datasets.sources.base import Source

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet


class TableFields(OptionGroup):
    """Fields of datasets with captions in a table."""

    source: str = option(..., "Path of the table of captions.")
    table_caption: str = option("caption", "Column of the captions: a text, or a list of alternatives.")
    table_filename: str = option("filename", "Column of the names of the images.")


def _prepare(entry: ImageSet, source: Source) -> CaptionsOf:
    import pyarrow
    import pyarrow.parquet

    fields = entry.own(TableFields)
    try:
        columns = pyarrow.parquet.read_table(fields.source, columns=[fields.table_filename, fields.table_caption]).to_pydict()
        names, captions = columns[fields.table_filename], columns[fields.table_caption]
    except KeyError as error:
        raise ValueError(f"{fields.source} has no column {error}") from error
    except pyarrow.ArrowException as error:
        raise ValueError(f"{fields.source} is no parquet table: {error}") from error
    rows = dict(zip(names, captions, strict=True))

    def captions_of(name: str) -> tuple[str, ...]:
        if name not in rows:
            raise NoCaption("the table has no row for it")
        cell = rows[name]
        found = tuple(text.strip() for text in (cell if isinstance(cell, list) else [cell]) if text and text.strip())
        if not found:
            raise NoCaption("its row has no caption")
        return found

    return captions_of


STRATEGIES = (
    CaptionStrategy(name="webshart", help="a column of its own table.", prepare=_prepare, fields=TableFields, paths={"source": "file"}),
)

"""Captions in the columns of a dataset of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainer_engine.datasets.captions.base import CaptionsOf, CaptionStrategy, NoCaption
from trainer_engine.datasets.sources.base import Source, WrongField
from trainer_engine.datasets.sources.hub.columns import ColumnSource
from trainer_engine.datasets.sources.hub.options import DEFAULT_CAPTIONS, row_options

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet

LONGEST_CAPTION = 1 << 20
NAME = "huggingface"


def _prepare(entry: ImageSet, source: Source) -> CaptionsOf:
    if not isinstance(source, ColumnSource):
        raise TypeError(f"type={entry.type} has no columns")
    wanted = row_options(entry).caption_columns
    names = wanted or tuple(name for name in DEFAULT_CAPTIONS if name in source.columns())[:1]
    if not names:
        message = "caption_column is missing, and there is no column caption or text"
        raise WrongField("caption_column", "missing", message, choices=source.columns())
    columns = [source.column(name) for name in names]
    return lambda name: _captions(name, names, columns)


def _captions(name: str, names: tuple[str, ...], columns: list[Callable[[str], Any]]) -> tuple[str, ...]:
    """Returns the texts of all columns in a row. Raises NoCaption."""
    found = tuple(dict.fromkeys(text for column in columns for text in _texts(column(name))))
    if not found:
        raise NoCaption(f"its row has no caption in {' or '.join(names)}")
    return found


def _texts(cell: object) -> list[str]:
    """Returns the text of a cell, or those of a list of alternatives, without blank ones."""
    cells = cell if isinstance(cell, list) else [cell]
    texts = [item.strip() for item in cells if isinstance(item, str)]
    if any(len(text) > LONGEST_CAPTION for text in texts):
        raise NoCaption("its caption is longer than a million characters")
    return [text for text in texts if text]


STRATEGIES = (
    CaptionStrategy(
        name=NAME,
        help="the column caption_column of a huggingface set.",
        prepare=_prepare,
        sources=(NAME,),
    ),
)

"""Captions in the columns of a dataset of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        raise ValueError(f"type={entry.type} has no columns")
    options = row_options(entry)
    wanted = options.caption_columns
    names = wanted or tuple(name for name in DEFAULT_CAPTIONS if name in source.columns())[:1]
    if not names and not options.fallback_columns:
        message = "caption_column is missing, and there is no column caption or text"
        raise WrongField("caption_column", "missing", message, choices=source.columns())
    tried = [names, *((name,) for name in options.fallback_columns)]
    columns = [[source.column(name) for name in group] for group in tried]
    return lambda name: _captions(name, [one for group in tried for one in group], columns)


def _captions(name: str, names: Sequence[str], tried: Sequence[Sequence[Callable[[str], Any]]]) -> tuple[str, ...]:
    """Returns the texts in a row of all columns of the first group that has one. Raises NoCaption."""
    for columns in tried:
        found = tuple(dict.fromkeys(text for column in columns for text in _texts(column(name))))
        if found:
            return found
    raise NoCaption(f"its row has no caption in {' or '.join(names)}")


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

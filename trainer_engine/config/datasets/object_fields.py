"""Fields of dataset entries that are objects, with their keys declared like options."""

from __future__ import annotations

import json
from typing import Literal

from trainer_engine.config.option import OptionGroup, option


class CaptionShuffle(OptionGroup):
    """How the tags of captions are shuffled. Each variant is one of a sample's alternative captions."""

    enable: bool = option(False, "Shuffle the tags of captions.")
    count: int = option(1, "Number of shuffled variants of each caption. The embedding of each is cached.", ge=1, le=100)
    seed: int | None = option(None, "Seed of the variants. Empty: that of the run.", ge=0)
    split_on: Literal["comma", "space", "period"] = option("comma", "What separates tags.")
    position_start: int = option(0, "Number of tags that stay in front.", ge=0)
    include_original: bool = option(True, "Keep the caption itself as an alternative.")


class TableFile(OptionGroup):
    """A table with a row for each file: captions for caption_strategy=parquet, sizes for metadata_backend=parquet."""

    path: str = option(..., "Path of the table: .parquet, .jsonl, or a .json file with a list of objects.")
    filename_column: str = option(..., "Column of the names of the files, with their folders in the dataset.")
    caption_column: str | None = option(
        None, "Column of the captions, or a list of columns. Each text in them is one of the alternative captions, also one of a list."
    )
    fallback_caption_column: str | None = option(None, "Column of the caption of a row that has none in caption_column.")
    width_column: str | None = option(None, "Column of the widths in pixels, as the images are shown.")
    height_column: str | None = option(None, "Column of the heights in pixels, as the images are shown.")
    identifier_includes_extension: bool = option(False, "The names in filename_column have the suffixes of the files.")

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The columns of captions, in order."""
        given = self.caption_column or ""
        return tuple(json.loads(given)) if given.startswith("[") else (given,) if given else ()

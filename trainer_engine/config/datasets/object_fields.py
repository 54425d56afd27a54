"""Fields of dataset entries that are objects."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trainer_engine.config.option import OptionGroup, option


class AspectChoice(BaseModel):
    """One aspect ratio that crops may have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aspect: float
    """Width / height."""
    weight: float
    """Share of the images that get it with crop_aspect=random. The weights of a list add up to 1."""


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


LONGEST_CLIP = 1024
"""Most frames of a clip that is trained on."""


class ClipLength(OptionGroup):
    """How many frames of each clip are trained on, and which clips are long enough."""

    num_frames: int | None = option(
        None,
        "Number of frames that are trained on, the first ones of each clip. It is rounded down to a length that the model takes. "
        "Empty: those of five seconds at the option framerate, or at 30 a second; with bucket_strategy=resolution_frames as many as each "
        "clip has, from min_frames on.",
        ge=1,
        le=LONGEST_CLIP,
    )
    min_frames: int | None = option(None, "Leave out clips with fewer frames. Empty: num_frames.", ge=1)
    max_frames: int | None = option(None, "Leave out clips with more frames. Empty: no limit.", ge=1)
    bucket_strategy: Literal["aspect_ratio", "resolution_frames"] = option(
        "aspect_ratio",
        "Number of frames of a longer clip. aspect_ratio: num_frames, so that buckets are those of images. resolution_frames: as many as "
        f"it has, at most {LONGEST_CLIP}, with a bucket for each length.",
    )
    frame_interval: int | None = option(
        None,
        "With bucket_strategy=resolution_frames, round the number of frames down to a multiple of this. Empty: to what the model takes.",
        ge=1,
    )
    is_i2v: bool = option(
        False, "Condition the model on the first frame. No effect: image-to-video flavours are always given it, and other models never are."
    )

    @property
    def frames(self) -> int:
        """``num_frames``. Parsing always fills it in."""
        assert self.num_frames is not None
        return self.num_frames

    def trained_frames(self, frames: int, stride: int) -> int:
        """Returns how many frames of a clip are trained on: one, and a multiple of ``stride``."""
        if self.bucket_strategy == "aspect_ratio":
            return self.frames
        interval = self.frame_interval or 1
        return max(self.frames, aligned_frames(min(frames, LONGEST_CLIP) // interval * interval, stride))


def aligned_frames(frames: int, stride: int) -> int:
    """Returns the largest number of frames, at most ``frames``, that is one and a multiple of ``stride``; at least 1."""
    return max(0, frames - 1) // stride * stride + 1

"""Captions that take no file: the name of the image, and the instance prompt."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trainer_engine.datasets.captions.base import CaptionsOf, CaptionStrategy, NoCaption
from trainer_engine.datasets.sources.base import Source

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet


def _from_names(entry: ImageSet, source: Source) -> CaptionsOf:
    return lambda name: (from_file_name(name),)


def from_file_name(name: str) -> str:
    """Returns the file name without folders and suffix, with spaces for underscores.

    Bytes that are not UTF-8 are dropped. Raises NoCaption if nothing is left.
    """
    stem = os.path.splitext(os.path.basename(name))[0]  # noqa: PTH119, PTH122 - text, for speed
    caption = os.fsencode(stem).decode("utf-8", "ignore").replace("_", " ").strip()
    if not caption:
        raise NoCaption("its name contains no text for a caption")
    return caption


def _from_prompts(entry: ImageSet, source: Source) -> CaptionsOf:
    return lambda name: entry.instance_prompt


STRATEGIES = (
    CaptionStrategy(name="filename", help="the name of the image file, with spaces for underscores.", prepare=_from_names),
    CaptionStrategy(
        name="instanceprompt",
        help="instance_prompt, for every image.",
        prepare=_from_prompts,
        synonyms=("instance_prompt",),
        takes_prompt_in_front=False,
    ),
)

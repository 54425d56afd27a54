"""What a caption strategy offers, and the strategies that take no file: the name of the image, and the instance prompt.

A new strategy is a file in this folder: docs/new-dataset-source.md builds one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from trainer_engine.config.dataset_tables import CaptionSpec, caption_specs
from trainer_engine.datasets.sources.base import Source

if TYPE_CHECKING:
    from trainer_engine.config.datasets import ImageSet

CaptionsOf = Callable[[str], tuple[str, ...]]
"""Name of a file -> its alternative captions, at least one. Called from several threads. Raises NoCaption."""


INSTANCE_PROMPT = "instanceprompt"


class NoCaption(ValueError):
    """A file has no caption. The message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaptionStrategy(CaptionSpec):
    """The declaration of a caption strategy. The files in this folder list theirs in ``STRATEGIES``."""

    prepare: Callable[[ImageSet, Source], CaptionsOf]
    """Makes the function that gives the captions of a dataset's files; what they share, such as a table, is read here, once.

    Raises OSError or ValueError, whose text says why no file can have a caption.
    """


def are_prompts(entry: ImageSet) -> bool:
    """Whether the captions of a dataset are its ``instance_prompt`` alone."""
    return entry.only_instance_prompt or entry.caption_strategy == INSTANCE_PROMPT


def takes_no_file(entry: ImageSet) -> bool:
    """Whether the captions of a dataset come from names or fields alone, so that text files beside the images are not read."""
    return entry.only_instance_prompt or caption_specs()[entry.caption_strategy].takes_no_file


def captions_of(entry: ImageSet, source: Source) -> CaptionsOf:
    """Returns the function that gives the captions of a dataset's files. Raises OSError or ValueError if no file can have one."""
    if are_prompts(entry):
        return _from_prompts(entry, source)
    strategy = cast(CaptionStrategy, caption_specs()[entry.caption_strategy])
    captions = strategy.prepare(entry, source)
    if not entry.prepend_instance_prompt or not strategy.takes_prompt_in_front:
        return captions
    return lambda name: tuple(f"{prompt} {caption}" for prompt in entry.instance_prompt for caption in captions(name))


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
    CaptionStrategy(
        name="filename",
        help="the name of the image file, with spaces for underscores.",
        prepare=_from_names,
        takes_no_file=True,
    ),
    CaptionStrategy(
        name=INSTANCE_PROMPT,
        help="instance_prompt, for every image.",
        prepare=_from_prompts,
        synonyms=("instance_prompt",),
        takes_no_file=True,
        takes_prompt_in_front=False,
    ),
)

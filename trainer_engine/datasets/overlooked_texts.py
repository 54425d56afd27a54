"""Text files beside the images of a dataset that does not take its captions from them."""

from __future__ import annotations

from collections.abc import Sequence

from trainer_engine.config.datasets import ImageSet
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.captions.base import NoCaption, are_prompts, takes_no_file
from trainer_engine.datasets.captions.textfile import from_text_file
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import Source

LOOKED_AT = 24
"""Images of a dataset whose text files are looked for, spread over it."""
MOST_OF_THEM = 0.5
"""From this share on, text files are there for their images; fewer may be notes of any kind."""


def overlooked_texts(entry: ImageSet, source: Source, samples: Sequence[Sample]) -> Problem | None:
    """A warning for captions in text files that a dataset does not read, or None. Only a source that is quick is looked at.

    It is a note where the prompts of the set are its captions, which people choose. ``source`` reads only what captions may be read from.
    """
    if not takes_no_file(entry) or not source.is_quick or not samples:
        return None
    some = samples[:: -(-len(samples) // LOOKED_AT)]
    count = sum(_has_text(source, sample.name) for sample in some)
    if count < MOST_OF_THEM * len(some):
        return None
    field = "only_instance_prompt" if entry.only_instance_prompt else "caption_strategy"
    value = "true" if entry.only_instance_prompt else entry.caption_strategy
    message = f"dataset {entry.id}: {field}={value} does not read the text files beside its files."
    hint = "set caption_strategy=textfile to take the captions from them"
    hint += ", and remove only_instance_prompt" if entry.only_instance_prompt else ""
    hint += "; files without one are left out then" if count < len(some) else ""
    make = Problem.note if are_prompts(entry) else Problem.warning
    return make(entry.option(field), "texts_overlooked", message, got=value, hint=hint)


def _has_text(source: Source, name: str) -> bool:
    try:
        return bool(from_text_file(source, name, split=True))
    except NoCaption:
        return False

"""Text files beside the images of a dataset that does not take its captions from them."""

from __future__ import annotations

from collections.abc import Sequence

from trainer_engine.config.dataset_tables import caption_specs
from trainer_engine.config.datasets import ImageSet
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.base import Source

TEXT_SUFFIX = ".txt"
LOOKED_AT = 24
"""Images of a dataset that are looked at, spread over it."""
MOST_OF_THEM = 0.5
"""From this share on, text files are there for their images; fewer may be notes of any kind."""


def overlooked_texts(entry: ImageSet, source: Source, samples: Sequence[Sample]) -> Problem | None:
    """A warning for captions in text files that a dataset does not read, or None. Only a source that is quick is looked at.

    It is a note where the captions are those of the instance prompt, which people choose.
    """
    if not caption_specs()[entry.caption_strategy].takes_no_file or not source.is_quick:
        return None
    some = samples[:: max(1, len(samples) // LOOKED_AT)][:LOOKED_AT]
    if not some or sum(_has_text(source, sample.name) for sample in some) < MOST_OF_THEM * len(some):
        return None
    message = f"dataset {entry.id}: caption_strategy={entry.caption_strategy} does not read the text files beside the images."
    hint = "set caption_strategy=textfile to take the captions from them"
    make = Problem.note if entry.instance_prompt else Problem.warning
    return make(entry.option("caption_strategy"), "texts_overlooked", message, got=entry.caption_strategy, hint=hint)


def _has_text(source: Source, image_name: str) -> bool:
    stem, _, _ = image_name.rpartition(".")
    try:
        return source.stat(f"{stem}{TEXT_SUFFIX}").size_bytes > 0
    except OSError:
        return False

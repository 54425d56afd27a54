"""Captions that are longer than the longest prompt of a model, counted without its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from trainer_engine.config.datasets import ImageSet
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets.samples import Sample

CODE = "captions_cut"


def has_more_words(text: str, most: int) -> bool:
    """Whether a text has more than so many words, between spaces."""
    return len(text) > 2 * most and len(text.split(maxsplit=most)) > most  # so many words take 2 * most - 1 characters at least


def captions_of(samples: Sequence[Sample]) -> set[str]:
    """The captions of samples, each once."""
    return {caption for sample in samples for caption in sample.captions}


def long_captions(entry: ImageSet, samples: Sequence[Sample], options: TrainingOptions, spec: FamilySpec) -> Problem | None:
    """Returns a note on how many captions of a dataset are cut off, or None.

    A tokenizer makes one token or more of every word, so that captions with more words than the model takes tokens are cut off for sure.
    Others that are may have fewer words.
    """
    limit = spec.tokens_of(options.model.model_flavour, options.model.tokenizer_max_length)
    captions = captions_of(samples)
    return cut_note(entry, sorted(caption for caption in captions if has_more_words(caption, limit)), len(captions), limit, spec)


def cut_note(entry: ImageSet, cut: Sequence[str], count: int, limit: int, spec: FamilySpec) -> Problem | None:
    """The note on these captions of a dataset with ``count``, or None if there are none."""
    if not cut:
        return None
    message = (
        f"dataset {entry.id}: at least {len(cut)} of {count} captions are longer than the {limit} tokens that {spec.title} reads; "
        f"their ends are cut off."
    )
    hint = f"put what matters first: the longest one begins with {max(cut, key=len)[:60]!r}"
    return Problem.note(entry.option("caption_strategy"), CODE, message, got=len(cut), expected=f"{limit} tokens", hint=hint)

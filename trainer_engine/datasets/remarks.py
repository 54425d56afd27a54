"""What people should know about pictures that are trained on all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer_engine.config.datasets import ImageSet
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets import geometry
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.local import printable

MAX_LISTED = 10
LIMITS = f"{geometry.SMALLEST_ASPECT:g} to {geometry.LARGEST_ASPECT:g}"


def remarks(entry: ImageSet, samples: Sequence[Sample]) -> Iterator[Problem]:
    """Notes about the pictures of one set."""
    option = entry.option("instance_data_dir")
    extreme = [sample for sample in samples if geometry.is_beyond_limits((sample.width, sample.height))]
    if extreme and (not entry.crop or entry.crop_aspect == "preserve"):
        message = f"dataset {entry.id}: {len(extreme)} images are narrower or wider than is trained, and lose both ends: {_named(extreme)}."
        yield Problem.note(option, "extreme_aspect", message, expected=f"an aspect (width / height) of {LIMITS}")
    looked_at = [*samples, *(reference.sample for sample in samples for reference in sample.references)]
    remarked = [sample for sample in looked_at if sample.remark]
    if remarked:
        named = _listed([f"{printable(sample.name)} ({sample.remark})" for sample in remarked])
        message = f"dataset {entry.id}: the colours of {len(remarked)} images are taken as they are: {named}."
        hint = "save them in sRGB where their colours matter"
        yield Problem.note(option, "colours_not_converted", message, hint=hint)


def _named(samples: Sequence[Sample]) -> str:
    return _listed([printable(sample.name) for sample in samples])


def _listed(names: Sequence[str]) -> str:
    shown = "; ".join(names[:MAX_LISTED])
    return f"{shown}; and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else shown

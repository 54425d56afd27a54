"""What people should know about pictures that are trained on all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer_engine.contract.dataloader import ImageSet
from trainer_engine.contract.errors import Problem
from trainer_engine.datasets import geometry
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.sources.local import printable

MOST_NAMED = 10
LIMITS = f"{geometry.SMALLEST_ASPECT:g} to {geometry.LARGEST_ASPECT:g}"


def remarks(entry: ImageSet, samples: Sequence[Sample]) -> Iterator[Problem]:
    """Notes about the pictures of one set."""
    option = entry.option("instance_data_dir")
    extreme = [sample for sample in samples if geometry.is_beyond_limits((sample.width, sample.height))]
    if extreme and (not entry.crop or entry.crop_aspect == "preserve"):
        message = f"dataset {entry.id}: {len(extreme)} images are narrower or wider than is trained, and lose both ends: {_named(extreme)}."
        yield Problem.note(option, "extreme_aspect", message, expected=f"an aspect (width / height) of {LIMITS}")


def _named(samples: Sequence[Sample]) -> str:
    names = "; ".join(printable(sample.name) for sample in samples[:MOST_NAMED])
    return f"{names}; and {len(samples) - MOST_NAMED} more" if len(samples) > MOST_NAMED else names

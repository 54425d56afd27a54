"""Which samples make up each optimizer step. A pure function of (datasets, seed, step): nothing to save, nothing to restore.

A batch holds samples of one bucket of one dataset. In an epoch every sample is seen ``repeats + 1`` times; the last batch of a bucket,
and the last optimizer step of an epoch, are filled up with what was seen in that epoch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from trainer_engine.datasets.samples import Sample
from trainer_engine.objectives.randomness import derived_seed


@dataclass(frozen=True)
class DataSource:
    """One dataset as the sampler sees it."""

    id: str
    buckets: tuple[tuple[Sample, ...], ...]
    """The samples of each bucket."""
    passes: int
    """How often each sample is seen in an epoch."""
    weight: float
    """``probability`` of the dataset, above 0."""
    at_least: int = 0
    """Samples that a bucket gives in an epoch even where it has fewer; they are repeated for it."""

    @property
    def samples(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)


@dataclass(frozen=True)
class Layout:
    """What one optimizer step takes over all processes."""

    batch: int
    """Samples of one pass over all processes together."""
    accumulation: int
    """Passes of one step."""


@dataclass(frozen=True)
class Item:
    """One sample of a global batch."""

    source: str
    """Id of the dataset."""
    sample: Sample


GlobalBatch = tuple[Item, ...]


class Sampler:
    """Steps are counted from 0: ``step(0)`` is what the first optimizer step takes."""

    def __init__(self, sources: Sequence[DataSource], layout: Layout, seed: int, *, by_size: bool) -> None:
        """``by_size``: whether the next batch's dataset is drawn by its weight times its size, or by its weight alone."""
        self.sources = tuple(source for source in sources if source.samples)
        self.layout = layout
        self.seed = seed
        self.by_size = by_size
        self.batches_per_epoch = sum(
            -(-self._drawn(source, bucket) // layout.batch) for source in self.sources for bucket in source.buckets
        )
        self.steps_per_epoch = -(-self.batches_per_epoch // layout.accumulation)
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that optimizer step ``step`` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def step(self, step: int) -> tuple[GlobalBatch, ...]:
        """The global batches of an optimizer step, one for each pass."""
        epoch, index = divmod(step, self.steps_per_epoch)
        plan = self._epoch(epoch)
        first = index * self.layout.accumulation
        return tuple(plan[number % len(plan)] for number in range(first, first + self.layout.accumulation))

    def _drawn(self, source: DataSource, bucket: Sequence[Sample]) -> int:
        """Samples that a bucket gives in an epoch."""
        return max(len(bucket) * source.passes, source.at_least)

    def _plan_epoch(self, epoch: int) -> list[GlobalBatch]:
        """The batches of an epoch in the order in which they are taken."""
        waiting = {
            (source.id, number): list(self._batches(source, number, epoch))
            for source in self.sources
            for number in range(len(source.buckets))
        }
        dice = random.Random(derived_seed(self.seed, "order", epoch))
        plan: list[GlobalBatch] = []
        last: tuple[str, int] | None = None
        while waiting:
            last = self._draw(waiting, last, dice)
            plan.append(waiting[last].pop())
            if not waiting[last]:
                del waiting[last]
        return plan

    def _draw(
        self, waiting: dict[tuple[str, int], list[GlobalBatch]], last: tuple[str, int] | None, dice: random.Random
    ) -> tuple[str, int]:
        """Dataset by weight, then bucket by what it has left; another bucket than the last one wherever there is one."""
        open_to = [key for key in waiting if key != last] or list(waiting)
        left: dict[str, list[tuple[str, int]]] = {}
        for key in open_to:
            left.setdefault(key[0], []).append(key)
        sources = [source for source in self.sources if source.id in left]
        weights = [source.weight * (source.samples if self.by_size else 1) for source in sources]
        chosen = left[dice.choices(sources, weights)[0].id]
        return dice.choices(chosen, [len(waiting[key]) for key in chosen])[0]

    def _batches(self, source: DataSource, number: int, epoch: int) -> Iterator[GlobalBatch]:
        bucket = source.buckets[number]
        dice = random.Random(derived_seed(self.seed, "bucket", epoch, source.id, number))
        order = _shuffled_passes(bucket, self._drawn(source, bucket), dice)
        size = self.layout.batch
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            batch += _fill(order[:start] or batch, size - len(batch), dice)
            yield tuple(Item(source.id, sample) for sample in batch)


def _shuffled_passes(bucket: Sequence[Sample], count: int, dice: random.Random) -> list[Sample]:
    """``count`` samples, each pass over the bucket in an order of its own."""
    order: list[Sample] = []
    while len(order) < count:
        one_pass = list(bucket)
        dice.shuffle(one_pass)
        order += one_pass[: count - len(order)]
    return order


def _fill(seen: Sequence[Sample], missing: int, dice: random.Random) -> list[Sample]:
    """``missing`` samples out of those seen, none twice before all were taken."""
    filled: list[Sample] = []
    while len(filled) < missing:
        filled += dice.sample(list(seen), min(len(seen), missing - len(filled)))
    return filled

"""Which samples make up each optimizer step. A pure function of (datasets, seed, step): nothing to save, nothing to restore.

A batch holds samples of one bucket of one dataset. In an epoch every sample is seen ``repeats + 1`` times, unless its set ends within the
epoch; the last batch of a bucket, and the last optimizer step of an epoch, are filled up with what was seen in that epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer_engine.batches.order import EpochOrder, Epochs, bucket_batches
from trainer_engine.config.datasets.fields import ALWAYS, Gates
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.timeline import TimedSet, Timeline
from trainer_engine.runtime.seeds import derived_seed


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
    batch: int | None = None
    """Samples of one of its batches over all processes; None for that of the run."""
    gates: Gates = ALWAYS
    """The epochs and steps in which it is trained on."""
    is_regularisation: bool = False
    """Whether its samples keep an adapter close to the network without it."""
    timestep_offset: float = 0.0
    """What its timesteps are moved by before the sigmoid of flow matching."""

    @property
    def samples(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def seen(self, bucket: Sequence[Sample]) -> int:
        """Samples that one of its buckets gives in an epoch."""
        return max(len(bucket) * self.passes, self.at_least)


@dataclass(frozen=True)
class BatchSizes:
    """What one optimizer step takes over all processes."""

    batch: int
    """Samples of one pass over all processes together, of sets that have no size of their own."""
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

    def __init__(self, sources: Sequence[DataSource], sizes: BatchSizes, seed: int, *, by_size: bool) -> None:
        """``by_size``: whether the next batch is sampled from all that are left, by the weights of their datasets, or its dataset is
        sampled by its weight alone."""
        self.sources = tuple(source for source in sources if source.samples)
        self.sizes = sizes
        self.seed = seed
        self.by_size = by_size
        self._buckets = [(source, number) for source in self.sources for number in range(len(source.buckets))]
        timed = tuple(
            TimedSet(source.id, tuple(self._batches(source, bucket) for bucket in source.buckets), source.weight, source.gates)
            for source in self.sources
        )
        self.timeline = Timeline(timed, sizes.accumulation, seed, by_size)
        self._epochs = Epochs(self._plan_epoch)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch in which all sets are trained on."""
        return sum(sum(one.batches) for one in self.timeline.sets)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch; others differ if sets begin or end."""
        return self.timeline.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that optimizer step ``step`` (from 0) belongs to."""
        return self.timeline.epoch_of(step)

    def step(self, step: int) -> tuple[GlobalBatch, ...]:
        """The global batches of an optimizer step, one for each pass."""
        epoch = self.timeline.epoch_of(step)
        plan, index = self._epochs.plan(epoch), step - self.timeline.start_of(epoch)
        if 2 * index >= self.timeline.length(epoch):
            self._epochs.prepare(epoch + 1)
        first = index * self.sizes.accumulation
        return tuple(self._batch(plan, number) for number in range(first, first + self.sizes.accumulation))

    def _batch_size(self, source: DataSource) -> int:
        return source.batch or self.sizes.batch

    def _batches(self, source: DataSource, bucket: Sequence[Sample]) -> int:
        return -(-source.seen(bucket) // self._batch_size(source))

    def _batch(self, plan: EpochOrder, number: int) -> GlobalBatch:
        bucket = int(plan.buckets[number])
        source, place = self._buckets[bucket]
        samples = source.buckets[place]
        return tuple(Item(source.id, samples[index]) for index in plan.samples[bucket][plan.numbers[number]].tolist())

    def _plan_epoch(self, epoch: int) -> EpochOrder:
        buckets, numbers = self.timeline.order(epoch)
        used = frozenset(np.unique(buckets).tolist())
        samples = tuple(
            bucket_batches(
                len(source.buckets[number]),
                source.seen(source.buckets[number]),
                self._batch_size(source),
                derived_seed(self.seed, "bucket", epoch, source.id, number),
            )
            if place in used
            else np.zeros((0, 1), np.int32)
            for place, (source, number) in enumerate(self._buckets)
        )
        return EpochOrder(buckets, numbers, samples)

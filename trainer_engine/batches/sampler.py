"""Which samples make up each optimizer step. A pure function of (datasets, seed, step): nothing to save, nothing to restore.

A batch holds samples of one bucket of one dataset. In an epoch every sample is seen ``repeats + 1`` times, unless its set ends within the
epoch; the last batch of a bucket, and the last optimizer step of an epoch, are filled up with what was seen in that epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trainer_engine.batches.order import EpochOrder, Epochs, bucket_batches
from trainer_engine.config.datasets.fields import ALWAYS, Gates
from trainer_engine.datasets.buckets import samples_seen
from trainer_engine.datasets.epoch_crops import EpochCrops
from trainer_engine.datasets.samples import Sample
from trainer_engine.datasets.timeline import TimedSet, Timeline
from trainer_engine.runtime.seeds import derived_seed


@dataclass(frozen=True)
class DataSource:
    """One dataset as the sampler sees it."""

    id: str
    buckets: tuple[tuple[Sample, ...], ...]
    """The samples of each bucket, with their crops of the first epoch."""
    repeats: int
    """How many more times than once each sample is seen in an epoch."""
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
    adapter_strength: float = 0.0
    """Strength of the adapter while it learns this set as a side of a slider; 0 for its usual strength."""
    crops: EpochCrops | None = None
    """The crops of its samples in each epoch; None if they do not change."""

    @property
    def samples(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    @property
    def changes_buckets(self) -> bool:
        return self.crops is not None and self.crops.entry.changes_aspects

    def seen(self, images: int) -> int:
        """Samples that a bucket of so many images gives in an epoch."""
        return samples_seen(images, self.repeats, self.at_least)

    def buckets_in(self, epoch: int) -> Sequence[Sequence[Sample]]:
        """The samples of each bucket of an epoch, from 0, with their crops of the first one."""
        if self.crops is None or not self.changes_buckets:
            return self.buckets
        return [[self.crops.samples[index] for index in members] for members in self.crops.buckets(epoch)]

    def cropped(self, sample: Sample, epoch: int) -> Sample:
        """The sample with its crop of an epoch."""
        return self.crops.of(sample, epoch) if self.crops else sample


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


class EpochPlan(NamedTuple):
    """What is trained on in an epoch."""

    epoch: int
    """Counted from 0."""
    order: EpochOrder
    buckets: Sequence[tuple[DataSource, Sequence[Sample]]]
    """The buckets of the order: the dataset of each, and its samples."""


class Sampler:
    """Steps are counted from 0: ``step(0)`` is what the first optimizer step takes."""

    def __init__(self, sources: Sequence[DataSource], sizes: BatchSizes, seed: int, *, by_size: bool) -> None:
        """``by_size``: whether the next batch is sampled from all that are left, by the weights of their datasets, or its dataset is
        sampled by its weight alone."""
        self.sources = tuple(source for source in sources if source.samples)
        self.sizes = sizes
        self.seed = seed
        self.by_size = by_size
        self.timeline = Timeline(tuple(map(self._timed, self.sources)), sizes.accumulation, seed, by_size)
        self._epochs = Epochs(self._plan_epoch)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch in which all sets are trained on, with the buckets of the first epoch."""
        return sum(sum(one.batches) for one in self.timeline.sets)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch; others differ if sets begin or end, or if their buckets change."""
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

    def _timed(self, source: DataSource) -> TimedSet:
        def batches(images: Iterable[int]) -> tuple[int, ...]:
            return tuple(-(-source.seen(count) // self._batch_size(source)) for count in images)

        side = (source.adapter_strength > 0) - (source.adapter_strength < 0)
        timed = TimedSet(source.id, batches(map(len, source.buckets)), source.weight, source.gates, side)
        if source.crops is None or not source.changes_buckets:
            return timed
        sizes = source.crops.bucket_sizes
        return timed._replace(changing=lambda epoch: batches(sizes(epoch)))

    def _batch(self, plan: EpochPlan, number: int) -> GlobalBatch:
        order, bucket = plan.order, int(plan.order.buckets[number])
        source, samples = plan.buckets[bucket]
        chosen = order.samples[bucket][order.numbers[number]].tolist()
        return tuple(Item(source.id, source.cropped(samples[index], plan.epoch)) for index in chosen)

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        buckets, numbers = self.timeline.order(epoch)
        used = frozenset(np.unique(buckets).tolist())
        members = [(source, number, bucket) for source in self.sources for number, bucket in enumerate(source.buckets_in(epoch))]
        samples = tuple(
            bucket_batches(
                len(bucket),
                source.seen(len(bucket)),
                self._batch_size(source),
                derived_seed(self.seed, "bucket", epoch, source.id, number),
            )
            if place in used
            else np.zeros((0, 1), np.int32)
            for place, (source, number, bucket) in enumerate(members)
        )
        return EpochPlan(epoch, EpochOrder(buckets, numbers, samples), [(source, bucket) for source, _, bucket in members])

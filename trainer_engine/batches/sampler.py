"""Which samples make up each optimizer step. A pure function of (datasets, seed, step): nothing to save, nothing to restore.

A batch holds samples of one bucket of one dataset. In an epoch every sample is seen ``repeats + 1`` times; the last batch of a bucket,
and the last optimizer step of an epoch, are filled up with what was seen in that epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainer_engine.batches.order import EpochOrder, Epochs, SetBatches, bucket_batches, interleave, numbered
from trainer_engine.datasets.samples import Sample
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
    is_regularisation: bool = False
    """Whether its samples keep an adapter close to the network without it."""

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

    def __init__(self, sources: Sequence[DataSource], sizes: BatchSizes, seed: int, *, by_size: bool) -> None:
        """``by_size``: whether the next batch is sampled from all that are left, by the weights of their datasets, or its dataset is
        sampled by its weight alone."""
        self.sources = tuple(source for source in sources if source.samples)
        self.sizes = sizes
        self.seed = seed
        self.by_size = by_size
        self._buckets = [(source, number) for source in self.sources for number in range(len(source.buckets))]
        self.batches_per_epoch = sum(self._batches(source, bucket) for source in self.sources for bucket in source.buckets)
        self.steps_per_epoch = -(-self.batches_per_epoch // sizes.accumulation)
        self._epochs = Epochs(self._plan_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that optimizer step ``step`` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def step(self, step: int) -> tuple[GlobalBatch, ...]:
        """The global batches of an optimizer step, one for each pass."""
        epoch, index = divmod(step, self.steps_per_epoch)
        plan = self._epochs.plan(epoch)
        if 2 * index >= self.steps_per_epoch:
            self._epochs.prepare(epoch + 1)
        first = index * self.sizes.accumulation
        return tuple(self._batch(plan, number % self.batches_per_epoch) for number in range(first, first + self.sizes.accumulation))

    def _batches(self, source: DataSource, bucket: Sequence[Sample]) -> int:
        return -(-source.seen(bucket) // self.sizes.batch)

    def _batch(self, plan: EpochOrder, number: int) -> GlobalBatch:
        bucket = int(plan.buckets[number])
        source, place = self._buckets[bucket]
        samples = source.buckets[place]
        return tuple(Item(source.id, samples[index]) for index in plan.samples[bucket][plan.numbers[number]].tolist())

    def _plan_epoch(self, epoch: int) -> EpochOrder:
        sets = [
            SetBatches(
                [self._batches(source, bucket) for bucket in source.buckets],
                source.weight,
                derived_seed(self.seed, "order", epoch, source.id),
            )
            for source in self.sources
        ]
        buckets = interleave(sets, by_size=self.by_size)
        samples = tuple(
            bucket_batches(
                len(source.buckets[number]),
                source.seen(source.buckets[number]),
                self.sizes.batch,
                derived_seed(self.seed, "bucket", epoch, source.id, number),
            )
            for source, number in self._buckets
        )
        return EpochOrder(buckets, numbered(buckets), samples)

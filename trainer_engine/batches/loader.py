"""Hands the batches of each optimizer step out in order, read in line or ahead in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

from trainer_engine.batches.batch import Batch
from trainer_engine.batches.collate import Collator
from trainer_engine.batches.sampler import GlobalBatch, Sampler


@dataclass(frozen=True)
class StepBatches:
    """What one process takes in one optimizer step."""

    step: int
    """Counted from 0."""
    epoch: int
    """Counted from 0."""
    passes: tuple[Batch, ...]
    samples: int
    """Over all processes and passes."""


def samples_before(plan: Sequence[GlobalBatch]) -> list[int]:
    """For each micro-batch of a step, the samples of those before it."""
    return list(accumulate(map(len, plan), initial=0))[:-1]


class Loader:
    """The order and every random number follow from the step alone, so reading ahead changes nothing but the time."""

    def __init__(self, sampler: Sampler, collator: Collator, *, ahead: int, pin: bool) -> None:
        """``ahead``: batches kept ready by a thread, 0 for none. ``pin``: whether they lie in pinned memory."""
        self.sampler = sampler
        self.collator = collator
        self.steps_ahead = -(-ahead // sampler.sizes.accumulation)
        self.pin = pin

    def load(self, step: int) -> StepBatches:
        """What optimizer step ``step``, from 0, takes."""
        plan = self.sampler.step(step)
        counted = zip(plan, samples_before(plan), strict=True)
        passes = tuple(self.collator.collate(step, number, batch, before) for number, (batch, before) in enumerate(counted))
        if self.pin:
            passes = tuple(batch.pinned() for batch in passes)
        return StepBatches(step, self.sampler.epoch_of(step), passes, sum(len(batch) for batch in plan))

    def steps(self, start: int, end: int) -> Iterator[StepBatches]:
        """Those of optimizer steps ``start`` .. ``end`` - 1. What goes wrong while reading ahead is raised when its turn comes."""
        if self.steps_ahead:
            yield from self._ahead(start, end)
        else:
            yield from map(self.load, range(start, end))

    def _ahead(self, start: int, end: int) -> Iterator[StepBatches]:
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
            ready: deque[Future[StepBatches]] = deque()
            try:
                for step in range(start, end):
                    while len(ready) < self.steps_ahead + 1 and step + len(ready) < end:
                        ready.append(reader.submit(self.load, step + len(ready)))
                    yield ready.popleft().result()
            finally:
                reader.shutdown(wait=False, cancel_futures=True)

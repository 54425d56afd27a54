"""Which epoch each optimizer step belongs to, where sets begin and end during a run. A pure function of the sets, the seed and the step.

An epoch gives every batch of every set that is trained on in it. A set that begins within an epoch adds its batches to those that are left;
one that ends takes its own away. The epoch is over when no batch is left, so epochs may differ in length. They also differ if images get
new aspects in each epoch.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from trainer_engine.config.datasets.fields import ALWAYS, Gates
from trainer_engine.runtime.seeds import derived_seed

if TYPE_CHECKING:
    from trainer_engine.batches.order import Integers, PhasedOrder


CHANGING_EPOCHS = 1_000
"""Epochs in which images get new aspects; afterwards they keep those of the last one. It bounds the work of counting steps."""


class TimedSet(NamedTuple):
    """One dataset as the timeline sees it."""

    id: str
    batches: tuple[int, ...]
    """Of each of its buckets, in the first epoch."""
    weight: float
    """Its ``probability``, above 0."""
    gates: Gates = ALWAYS
    side: int = 0
    """The side of a slider that it is on: 1, -1, or 0 for neither."""
    changing: Callable[[int], tuple[int, ...]] | None = None
    """epoch, from 0 -> ``batches`` of that epoch; None if they are the same in all epochs."""

    def batches_in(self, epoch: int) -> tuple[int, ...]:
        """Returns the batches of each of its buckets in an epoch, from 0."""
        return self.changing(epoch) if self.changing else self.batches


class Stretch(NamedTuple):
    """Epochs of one length that follow each other."""

    epoch: int
    """The first of them, from 0."""
    start: int
    """Optimizer steps before it."""
    length: int
    """Optimizer steps of each."""
    epochs: int
    """Number of them; ``sys.maxsize`` for no end."""

    def has(self, one: TimedSet, steps: int = sys.maxsize) -> bool:
        """Whether a set is trained on in these epochs, before ``steps`` steps are over."""
        last = min(steps, self.start + self.length)
        gates = one.gates
        return gates.has_epoch(self.epoch + 1) and gates.start_step <= last and (not gates.end_step or gates.end_step > self.start)


@dataclass(frozen=True)
class Timeline:
    """Epochs and steps are counted from 0. After ``end``, no set is left to train on."""

    sets: tuple[TimedSet, ...]
    accumulation: int
    """Batches of one optimizer step."""
    seed: int
    by_size: bool

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        return tuple(self._measure())

    @property
    def end(self) -> int | None:
        """Number of optimizer steps that can be taken; None for no limit."""
        if not self.stretches:
            return 0
        last = self.stretches[-1]
        return None if last.epochs == sys.maxsize else last.start + last.epochs * last.length

    @property
    def epochs(self) -> int:
        """Number of epochs until ``end``, ``sys.maxsize`` for no limit."""
        return min(sys.maxsize, self.stretches[-1].epoch + self.stretches[-1].epochs) if self.stretches else 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch."""
        return self.length(0)

    def epoch_of(self, step: int) -> int:
        """Returns the epoch of a step; for steps after ``end`` the one that would follow."""
        found = self._stretch(bisect_right(self.stretches, step, key=lambda one: one.start))
        return found.epoch + min(found.epochs, (step - found.start) // found.length) if found else 0

    def start_of(self, epoch: int) -> int:
        """Returns the number of steps before an epoch; ``end`` for an epoch after it."""
        found = self._stretch(bisect_right(self.stretches, epoch, key=lambda one: one.epoch))
        return found.start + min(found.epochs, epoch - found.epoch) * found.length if found else 0

    def length(self, epoch: int) -> int:
        """Returns the number of steps of an epoch; 1 after ``end``."""
        return max(1, self.start_of(epoch + 1) - self.start_of(epoch))

    def passed(self, steps: int) -> Fraction:
        """Returns how many epochs are over after so many steps, with the part of the current one."""
        epoch = self.epoch_of(steps)
        return epoch + Fraction(steps - self.start_of(epoch), self.length(epoch))

    def steps_for(self, epochs: Fraction) -> int:
        """Returns the smallest number of steps after which so many epochs are over."""
        whole, part = divmod(epochs, 1)
        return self.start_of(int(whole)) + -int(-part * self.length(int(whole)) // 1)

    def order(self, epoch: int) -> tuple[Integers, Integers]:
        """Returns the bucket of each batch of an epoch, and which of that bucket's batches it is: whole steps.

        Buckets are counted over all sets. The last step is filled up with the first batches of the epoch, of sets that are still trained
        on in it.
        """
        return self._order(epoch, self.start_of(epoch))

    def is_trained(self, one: TimedSet, steps: int) -> bool:
        """Whether a set is trained on in the first ``steps`` steps."""
        return any(found.has(one, steps) for found in self.stretches if found.start < steps)

    def _stretch(self, number: int) -> Stretch | None:
        return self.stretches[number - 1] if number else None

    def _measure(self) -> Iterator[Stretch]:
        epoch = start = 0
        while batches := sum(sum(one.batches_in(epoch)) for one in self._active(epoch, start)):
            length = -(-batches // self.accumulation)
            epoch_cuts = [cut - 1 for one in self.sets for cut in one.gates.epoch_cuts if cut - 1 > epoch]
            step_cuts = self._step_cuts(epoch, start)
            cuts = [*(cut - epoch for cut in epoch_cuts), *((cut - start) // length for cut in step_cuts)]
            count = min([self._alike(epoch), *cuts])
            if count == 0:
                length, count = len(self._order(epoch, start)[0]) // self.accumulation, 1
            yield Stretch(epoch, start, length, count)
            if count == sys.maxsize:
                return
            epoch, start = epoch + count, start + count * length

    def _alike(self, epoch: int) -> int:
        """Returns how many epochs, from this one on, have the same number of batches of each set."""
        counts = [(one, sum(one.batches_in(epoch))) for one in self.sets if one.changing]
        for later in range(epoch + 1, CHANGING_EPOCHS if counts else 0):
            if any(sum(one.batches_in(later)) != count for one, count in counts):
                return later - epoch
        return sys.maxsize

    def _active(self, epoch: int, steps: int) -> list[TimedSet]:
        return [one for one in self.sets if one.gates.has_epoch(epoch + 1) and one.gates.has_step(steps + 1)]

    def _step_cuts(self, epoch: int, steps: int) -> list[int]:
        """Numbers of steps above ``steps`` after which a set of this epoch begins or has ended."""
        return [cut - 1 for one in self.sets if one.gates.has_epoch(epoch + 1) for cut in one.gates.step_cuts if cut - 1 > steps]

    def _order(self, epoch: int, start: int) -> tuple[Integers, Integers]:
        found, steps, phase = self._batches_of(epoch), start, 0
        while True:
            active = self._active(epoch, steps)
            turns = {number: (one.weight, self._phase_seed(epoch, phase, one)) for number, one in enumerate(self.sets) if one in active}
            room = (min(self._step_cuts(epoch, steps), default=sys.maxsize) - steps) * self.accumulation
            taken, is_over = found.extend(turns, room, by_size=self.by_size)
            if is_over:
                return found.in_steps_of(self.accumulation, turns)
            steps, phase = steps + taken // self.accumulation, phase + 1

    def _batches_of(self, epoch: int) -> PhasedOrder:
        # NOTE: the server counts epochs without numpy, which it does not load.
        from trainer_engine.batches.order import PhasedOrder

        return PhasedOrder([one.batches_in(epoch) for one in self.sets], [one.side for one in self.sets])

    def _phase_seed(self, epoch: int, phase: int, one: TimedSet) -> int:
        return derived_seed(self.seed, "order", epoch, one.id, *((phase,) if phase else ()))

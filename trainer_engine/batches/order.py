"""The order of an epoch: which bucket gives each batch, and which of its samples make up each of its batches.

Every batch of an epoch gets a random arrival time, and the batches are taken in the order of these times. Arrival times are exponential, so
that each batch that is left comes next with a probability proportional to its rate, whatever has arrived already (Efraimidis and Spirakis,
2006).

Nothing here depends on the machine: the raw output of the PCG64 generator is fixed, and so are the results of single additions,
multiplications and divisions. Shuffles are stable sorts by 64 random bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int32]
Floats = NDArray[np.float64]
LN_2 = 0.6931471805599453
LOWEST_RATE = 1e-200
"""A set of such a rate comes after all others; a lower one could not be divided by."""
BLOCK = 1 << 16
LOG_TERMS = 11
"""Terms of the series below; the first one left out is smaller than a float's last bit."""


@dataclass(frozen=True)
class EpochOrder:
    """Batches in the order in which they are taken: whole optimizer steps."""

    buckets: Integers
    """(batches,): the bucket that gives each batch."""
    numbers: Integers
    """(batches,): which of its bucket's batches it is, from 0."""
    samples: tuple[Integers, ...]
    """By bucket, (its batches, batch size): indices of samples."""


@dataclass(frozen=True)
class SetBatches:
    """What one dataset gives in an epoch."""

    batches: Sequence[int]
    """Of each of its buckets."""
    weight: float
    """Above 0."""
    seed: int
    """Of this dataset in this epoch."""


def interleave(sets: Sequence[SetBatches], *, by_size: bool) -> Integers:
    """The bucket of each batch of an epoch; buckets are counted over all sets.

    ``by_size``: the next batch is sampled from all that are left, each as likely as its set's weight. Else the next set is sampled by its
    weight from those that have something left, and then one of its batches, each as likely as the other.
    """
    heaviest = max(one.weight for one in sets if sum(one.batches))
    times, owners, first = [], [], 0
    for one in sets:
        raw = np.random.PCG64(one.seed)
        total = sum(one.batches)
        waits = _exponential(raw.random_raw(total)) / max(one.weight / heaviest, LOWEST_RATE)
        times.append(waits if by_size else np.cumsum(waits))
        found = np.repeat(np.arange(first, first + len(one.batches), dtype=np.int32), one.batches)
        owners.append(found[_shuffled(raw.random_raw(total))])
        first += len(one.batches)
    arrival = np.argsort(np.concatenate(times), kind="stable")
    return np.concatenate(owners)[arrival]


def alternating(sides: Integers) -> Integers:
    """An order of batches in which the sides of a slider take turns: positive, negative, neutral.

    ``sides``: 1, -1 or 0 for each batch. The batches of a side keep their order, and a side without batches is passed over.
    """
    turns = np.array([2, 0, 1], np.int32)[sides]  # neutral, positive, negative
    return np.lexsort((turns, numbered(turns))).astype(np.int32)


def numbered(buckets: Integers) -> Integers:
    """For each batch, how many of its bucket come before it."""
    by_bucket = np.argsort(buckets, kind="stable")
    counts = np.bincount(buckets)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    numbers = np.empty(len(buckets), np.int32)
    numbers[by_bucket] = np.arange(len(buckets)) - starts
    return numbers


class PhasedOrder:
    """The order of an epoch in which the sets that are trained on may change. One phase follows the other."""

    def __init__(self, batches: Sequence[Sequence[int]], sides: Sequence[int] = ()) -> None:
        """``batches``: of each bucket of each set. ``sides``: of a slider, 1, -1 or 0, for each set; empty without a slider."""
        self._sides = np.array(sides, np.int32)
        self._left = [list(one) for one in batches]
        self._owners = np.repeat(np.arange(len(batches)), [len(one) for one in batches])
        self._taken: list[Integers] = [np.zeros(0, np.int32)]

    def extend(self, turns: Mapping[int, tuple[float, int]], most: int, *, by_size: bool) -> tuple[int, bool]:
        """Takes up to ``most`` of the batches that are left in the given sets: number -> (weight, seed).

        Returns how many were taken, and whether these sets have none left.
        """
        sets = [
            SetBatches(left if number in turns else [0] * len(left), *turns.get(number, (1.0, 0))) for number, left in enumerate(self._left)
        ]
        if not any(sum(one.batches) for one in sets):
            return 0, True
        found = interleave(sets, by_size=by_size)
        if self._sides.any():
            found = found[alternating(self._sides[self._owners[found]])]
        taken = found[:most]
        self._taken.append(taken)
        counts = iter(np.bincount(taken, minlength=len(self._owners)).tolist())
        self._left = [[batches - next(counts) for batches in left] for left in self._left]
        return len(taken), len(taken) == len(found)

    def in_steps_of(self, size: int, sets: Container[int]) -> tuple[Integers, Integers]:
        """Returns the bucket of each batch, and which of its bucket's batches it is.

        The last step of ``size`` batches is filled up with the epoch's first batches of ``sets``.
        """
        buckets = np.concatenate(self._taken)
        numbers = numbered(buckets)
        usable = np.array([number in sets for number in range(len(self._left))])[self._owners[buckets]]
        again = np.resize(np.flatnonzero(usable), -len(buckets) % size)
        return np.concatenate([buckets, buckets[again]]), np.concatenate([numbers, numbers[again]])


def bucket_batches(size: int, count: int, batch: int, seed: int) -> Integers:
    """(batches, batch): ``count`` samples of a bucket of ``size``, each pass over it in an order of its own.

    The last batch is filled up with samples that were seen in earlier ones, none twice before all of them were taken; where there are no
    earlier ones, with its own.
    """
    raw = np.random.PCG64(seed)
    passes = -(-count // size)
    order = np.argsort(raw.random_raw(passes * size).reshape(passes, size), axis=1, kind="stable").ravel()[:count]
    missing = -count % batch
    if missing:
        start = count - count % batch
        seen = order[: min(start, size)] if start else order
        order = np.concatenate([order, np.resize(seen[_shuffled(raw.random_raw(len(seen)))], missing)])
    return order.astype(np.int32).reshape(-1, batch)


def _shuffled(raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The numbers from 0 in a random order."""
    return np.argsort(raw, kind="stable")


def _exponential(raw: NDArray[np.uint64]) -> Floats:
    """Waiting times of rate 1."""
    times = np.empty(len(raw))
    for start in range(0, len(raw), BLOCK):  # what is needed in between stays small
        block = raw[start : start + BLOCK]
        times[start : start + BLOCK] = -_log(((block >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)
    return times


def _log(values: Floats) -> Floats:
    """Natural logarithm of numbers above 0: log(m) = log(c) + 2 atanh((m - c) / (m + c)).

    NOTE: not the library's, whose last bit differs between machines and could change the order.
    """
    mantissa, exponent = np.frexp(values)
    centre = math.sqrt(0.5)
    ratio = (mantissa - centre) / (mantissa + centre)
    square, series = ratio * ratio, np.zeros_like(ratio)
    for power in range(2 * LOG_TERMS - 1, 0, -2):
        series *= square
        series += 1 / power
    return exponent * LN_2 + (2 * ratio * series - LN_2 / 2)


KEPT = 2
"""Epochs whose plan is remembered."""
Plan = TypeVar("Plan")


class Epochs(Generic[Plan]):
    """Plans of epochs. They follow from their epoch alone, so planning ahead changes nothing but the time.

    Safe to ask from several threads.
    """

    def __init__(self, plan: Callable[[int], Plan]) -> None:
        self._plan = plan
        self._known: dict[int, Future[Plan]] = {}
        self._lock = Lock()

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch, from 0."""
        return self.prepare(epoch).result()

    def prepare(self, epoch: int) -> Future[Plan]:
        """Begin to plan an epoch in a thread, unless it is remembered; the thread ends with the plan."""
        with self._lock:
            if epoch not in self._known:
                while len(self._known) >= KEPT:
                    self._known.pop(next(iter(self._known)))
                planner = ThreadPoolExecutor(1, thread_name_prefix="order of an epoch")
                self._known[epoch] = planner.submit(self._plan, epoch)
                planner.shutdown(wait=False)
            return self._known[epoch]

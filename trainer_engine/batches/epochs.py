"""The orders of the current and the next epoch; the next one is planned beside the steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from trainer_engine.batches.order import EpochOrder

KEPT = 2
"""Epochs whose order is remembered."""


class Epochs:
    """Orders follow from their epoch alone, so planning ahead changes nothing but the time. Safe to ask from several threads."""

    def __init__(self, plan: Callable[[int], EpochOrder]) -> None:
        self._plan = plan
        self._known: dict[int, Future[EpochOrder]] = {}
        self._lock = Lock()

    def plan(self, epoch: int) -> EpochOrder:
        """The order of an epoch, from 0."""
        return self.prepare(epoch).result()

    def prepare(self, epoch: int) -> Future[EpochOrder]:
        """Begin to plan an epoch in a thread, unless it is remembered; the thread ends with the plan."""
        with self._lock:
            if epoch not in self._known:
                while len(self._known) >= KEPT:
                    self._known.pop(next(iter(self._known)))
                planner = ThreadPoolExecutor(1, thread_name_prefix="order of an epoch")
                self._known[epoch] = planner.submit(self._plan, epoch)
                planner.shutdown(wait=False)
            return self._known[epoch]

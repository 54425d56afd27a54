"""One tracker in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from trainer_engine.trackers.base import RunFacts, Tracker

Told = Callable[[Tracker], None]
MOST_WAITING = 1000
PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for a tracker to write what it was told."""


class Reporter:
    """Whoever tells it something never waits: what a slow tracker cannot keep up with is left out, and counted."""

    def __init__(self, name: str, make: Callable[[RunFacts], Tracker], facts: RunFacts) -> None:
        self.name = name
        self.trouble = ""
        """Why the tracker was given up; empty while it works."""
        self.lost = 0
        self._make, self._facts = make, facts
        self._waiting: queue.Queue[Told | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def emit(self, told: Told) -> None:
        if self.trouble:
            return
        try:
            self._waiting.put_nowait(told)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Wait for what was told, but not for ever."""
        try:
            self._waiting.put(None, timeout=PATIENCE_SECONDS)
        except queue.Full:
            self.trouble = self.trouble or f"it did not keep up within {PATIENCE_SECONDS:g} s"
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            self.trouble = self.trouble or f"it did not finish within {PATIENCE_SECONDS:g} s"

    def _work(self) -> None:
        try:
            self._facts.folder.mkdir(parents=True, exist_ok=True)
            tracker = self._make(self._facts)
            while (told := self._waiting.get()) is not None:
                told(tracker)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - the edge of the thread: whatever a tracker raises is a warning on the job
            self.trouble = f"{type(error).__name__}: {error}"
            self._drain()

    def _drain(self) -> None:
        """Take what is still told, so that ``close`` does not wait for room."""
        while self._waiting.get() is not None:
            pass

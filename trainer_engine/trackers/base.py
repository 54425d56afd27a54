"""The interface of experiment trackers, and the thread that a tracker runs in."""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_WAITING = 1000
PATIENCE_SECONDS = 60.0
"""How long the end of a run waits for a tracker to finish writing."""


@dataclass(frozen=True)
class RunFacts:
    """What a tracker needs to know of a run."""

    project: str
    name: str
    folder: Path
    """Folder for the tracker's own files; it exists before a tracker is created."""
    settings: Mapping[str, Any]
    """Options of the run that differ from their defaults."""
    is_online: bool
    """Whether a login exists for trackers that need one."""
    image_layout: str = "gallery"
    """``tracker_image_layout``."""


class Tracker(ABC):
    """Created, called and closed in a thread of its own. An exception ends this tracker and nothing else."""

    @abstractmethod
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an optimizer step."""

    @abstractmethod
    def image(self, step: int, title: str, path: Path, caption: str) -> None:
        """A validation image, as a PNG file."""

    @abstractmethod
    def clip(self, step: int, title: str, path: Path, caption: str) -> None:
        """A validation clip, as an animated GIF file."""

    @abstractmethod
    def close(self) -> None:
        """Write everything received so far before returning."""


Message = Callable[[Tracker], None]
"""One call of a tracker, with its arguments."""


class Reporter:
    """Calls one tracker in a thread of its own. The caller never waits: messages that a slow tracker cannot keep up with are dropped."""

    def __init__(self, name: str, make: Callable[[RunFacts], Tracker], facts: RunFacts) -> None:
        self.name = name
        self.trouble = ""
        """Why the tracker failed; empty while it works."""
        self.lost = 0
        """How many messages were dropped."""
        self._make, self._facts = make, facts
        self._waiting: queue.Queue[Message | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def emit(self, message: Message) -> None:
        """Queue a message."""
        if self.trouble:
            return
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Wait until the tracker has written all messages, at most twice ``PATIENCE_SECONDS``."""
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
            while (message := self._waiting.get()) is not None:
                message(tracker)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - the edge of the thread: any error of a tracker is a warning of the job
            self.trouble = f"{type(error).__name__}: {error}"
            self._drain()

    def _drain(self) -> None:
        """Discard further messages, so that ``close`` does not wait for space in the queue."""
        while self._waiting.get() is not None:
            pass

"""Keeps the process quick while many files are examined."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class ManyObjects:
    """Pauses the cyclic garbage collector while hundreds of thousands of small objects are made, none of which is part of a cycle.

    A full collection walks through all of them, stops every thread of the process for as long, and frees nothing.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _users: int = 0
    _was_on: bool = False

    @contextmanager
    def being_made(self) -> Iterator[None]:
        """Several threads may be in this block; the collector returns with the last one, unless it was off before the first."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._was_on = gc.isenabled()
                gc.disable()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._was_on:
                    gc.enable()


MANY_OBJECTS = ManyObjects()

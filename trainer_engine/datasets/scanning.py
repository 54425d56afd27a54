"""Keeps the process quick while many files are examined: the collector pauses, and threads are started where a disk is slow."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

CHUNK_FILES = 128
QUICK_SECONDS = 250e-6
"""Files that take less are examined in the calling thread: threads that take turns at the interpreter cost more than they win."""
File = TypeVar("File")
Outcome = TypeVar("Outcome")


@dataclass
class ManyObjects:
    """Pauses the cyclic garbage collector while hundreds of thousands of objects are made that stay, or that no cycle keeps alive.

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


def examine_all(files: Sequence[File], examine: Callable[[File], Outcome], threads: int) -> Iterator[list[Outcome]]:
    """Yields what ``examine`` returns for each file, in order, a chunk at a time.

    It runs in the calling thread for as long as a file takes microseconds. From the first chunk on that waits longer, as for a disk over
    a network, the files that are left are shared out to ``threads``. A chunk that waited for a processor, because the machine is busy, is
    followed by one that did not.
    """
    chunks = [files[start : start + CHUNK_FILES] for start in range(0, len(files), CHUNK_FILES)]
    slow_before = False
    for number, chunk in enumerate(chunks, start=1):
        began = time.perf_counter()
        outcomes = [examine(file) for file in chunk]
        is_slow, rest = time.perf_counter() - began > QUICK_SECONDS * len(chunk), chunks[number:]
        yield outcomes
        if rest and threads > 1 and is_slow and slow_before:
            with ThreadPoolExecutor(min(threads, len(rest))) as pool:
                yield from pool.map(lambda chunk: [examine(file) for file in chunk], rest)
            return
        slow_before = is_slow

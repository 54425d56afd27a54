"""The engine's only voice: one event a line, numbered from 0 without gaps."""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Protocol

from trainer_engine.contract.atomic import PRIVATE_MODE
from trainer_engine.contract.events import Event, ImageEvent, StageEvent, StageStatus, decode, encode, utc_now

BLOCK_BYTES = 1 << 16
MOST_WAITING = 10_000
"""Events kept in memory while the disk takes none. Beyond it those that only show progress are left out."""


class EventSink(Protocol):
    """Where events are told."""

    def emit(self, event: Event) -> None: ...


class NullSink:
    """The voice of every rank but the first."""

    def emit(self, event: Event) -> None:
        """Says nothing."""


class Journal:
    """Appends whole lines. Where the file has lines already, counting goes on after the last whole one, and half a line is cut off.

    An event that the disk does not take stays in memory, and is written before the next one. It gets its number when it is written, so
    that the lines of the file have no gaps, and nothing that was read from the file is ever taken back.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be opened."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        self.next_seq = _next_seq(self._descriptor)
        self._waiting: deque[tuple[Event, str]] = deque()
        self._torn_at: int | None = None
        """Length of the whole lines, while part of another one follows them."""

    def emit(self, event: Event) -> None:
        """Write the event, or keep it until the disk takes it. Raises nothing for the disk's sake: ``catch_up`` says what is wrong."""
        if len(self._waiting) < MOST_WAITING or not _only_shows_progress(event):
            self._waiting.append((event, utc_now()))
        self.catch_up()

    def catch_up(self) -> OSError | None:
        """Write what waits, in its order; what keeps it from being written, None once nothing waits."""
        try:
            while self._waiting:
                self._append(*self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            return error
        return None

    def _append(self, event: Event, timestamp: str) -> None:
        line = encode(event, seq=self.next_seq, timestamp=timestamp).encode("utf-8", "backslashreplace") + b"\n"
        if self._torn_at is not None:
            os.ftruncate(self._descriptor, self._torn_at)
            self._torn_at = None
        written = os.write(self._descriptor, line)
        if written != len(line):
            self._torn_at = os.fstat(self._descriptor).st_size - written
            os.ftruncate(self._descriptor, self._torn_at)
            self._torn_at = None
            raise OSError(errno.ENOSPC, "No space left for the journal", str(self.path))
        self.next_seq += 1

    def sync(self) -> None:
        """After a power cut, what was told before is still there."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _only_shows_progress(event: Event) -> bool:
    """Whether a later event says all that a reader needs: a stage that moves, an image that is still being sampled."""
    if isinstance(event, StageEvent):
        return event.status is StageStatus.RUNNING and event.current > 0
    return isinstance(event, ImageEvent) and event.validation_type == "intermediary"


def _next_seq(descriptor: int) -> int:
    """One more than the last whole line's number; what follows the last line's end is cut off."""
    end = os.fstat(descriptor).st_size
    tail, start = b"", end
    while start > 0 and tail.count(b"\n") < 2:
        length = min(BLOCK_BYTES, start)
        start -= length
        tail = os.pread(descriptor, length, start) + tail
    whole = tail[: tail.rfind(b"\n") + 1]
    if len(whole) < len(tail):
        os.ftruncate(descriptor, end - (len(tail) - len(whole)))
    return decode(whole.splitlines()[-1]).seq + 1 if whole else 0

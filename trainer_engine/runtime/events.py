"""Where the engine reports events. The journal is a file with one event a line, numbered from 0 without gaps."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Protocol

from trainer_engine.contract.atomic import PRIVATE_MODE
from trainer_engine.contract.events import Event, ImageEvent, StageEvent, StageStatus, decode, encode, utc_now

BLOCK_BYTES = 1 << 16
MOST_WAITING = 10_000
"""The most events kept in memory while the disk is full. Beyond it, events that only show progress are dropped."""


class EventSink(Protocol):
    """Receives events."""

    def emit(self, event: Event) -> None: ...


class NullSink:
    """The sink of every process but the first."""

    def emit(self, event: Event) -> None:
        """Discard the event."""


class Journal:
    """Appends one line an event to a file. In an existing file it continues after the last complete line and cuts off a partial one.

    An event that cannot be written stays in memory and is written before the next one. It gets its number when it is written, so the
    numbers in the file have no gaps and a line that was read never changes.
    """

    def __init__(self, path: Path, uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Raises OSError if the file cannot be opened.

        Every event is written in a block of ``uninterrupted``, which lets no signal raise: an exception between the write and its count
        would give the next event the same number.
        """
        self.path = path
        self._uninterrupted = uninterrupted
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        self.next_seq = _next_seq(self._descriptor)
        self._waiting: deque[tuple[Event, str]] = deque()
        self._torn_at: int | None = None
        """Length of the complete lines, while a partial line follows them."""

    def emit(self, event: Event) -> None:
        """Write the event, or keep it in memory if the disk is full. Never raises OSError; ``catch_up`` returns it."""
        with self._uninterrupted():
            if len(self._waiting) < MOST_WAITING or not _only_shows_progress(event):
                self._waiting.append((event, utc_now()))
            self.catch_up()

    def catch_up(self) -> OSError | None:
        """Write the waiting events in order. Returns the error that prevents it; None once no event waits."""
        with self._uninterrupted():
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
        """Flush to the disk, so that the events written before survive a power failure."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _only_shows_progress(event: Event) -> bool:
    """Whether a later event makes this one unnecessary: progress of a stage, an image that is still being sampled."""
    if isinstance(event, StageEvent):
        return event.status is StageStatus.RUNNING and event.current > 0
    return isinstance(event, ImageEvent) and event.validation_type == "intermediary"


def _next_seq(descriptor: int) -> int:
    """One more than the number of the last event. Cuts off what follows it: a partial line, or lines that a power failure damaged."""
    size = end = os.fstat(descriptor).st_size
    seq: int | None = None
    while end and seq is None:
        line, start, end = _last_line(descriptor, end)
        seq = _seq_of(line)
        end = start if seq is None else end
    if end < size:
        os.ftruncate(descriptor, end)
    return 0 if seq is None else seq + 1


def _last_line(descriptor: int, end: int) -> tuple[bytes, int, int]:
    """(the last complete line before ``end``, its start, its end); an empty line at 0 if there is none."""
    tail, start = b"", end
    while start > 0 and tail.count(b"\n") < 2:
        length = min(BLOCK_BYTES, start)
        start -= length
        tail = os.pread(descriptor, length, start) + tail
    complete = tail[: tail.rfind(b"\n") + 1]
    begin = complete.rfind(b"\n", 0, -1) + 1
    return complete[begin:], start + begin, start + len(complete)


def _seq_of(line: bytes) -> int | None:
    """The number of an event; None if the line is not one."""
    try:
        seq: object = decode(line).seq
    except ValueError:
        return None
    return seq if isinstance(seq, int) else None

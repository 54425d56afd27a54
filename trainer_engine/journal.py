"""The engine's only voice: one event a line, numbered from 0 without gaps."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

from trainer_engine.contract.atomic import PRIVATE_MODE
from trainer_engine.contract.events import Event, decode, encode

BLOCK_BYTES = 1 << 16


class Voice(Protocol):
    """Where events are told."""

    def tell(self, event: Event) -> None: ...


class Silence:
    """The voice of every rank but the first."""

    def tell(self, event: Event) -> None:
        """Says nothing."""


class Journal:
    """Appends whole lines. Where the file has lines already, counting goes on after the last whole one, and half a line is cut off."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where the file cannot be opened."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, PRIVATE_MODE)
        self.next_seq = _next_seq(self._descriptor)

    def tell(self, event: Event) -> None:
        """Raises OSError where the disk does not take the line; the next one takes its number then."""
        line = encode(event, seq=self.next_seq).encode("utf-8", "backslashreplace") + b"\n"
        written = os.write(self._descriptor, line)
        if written != len(line):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(28, "No space left for the journal", str(self.path))
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

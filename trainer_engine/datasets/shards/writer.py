"""Appends entries to a shard that the writer has to itself."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from trainer_engine.contract.atomic import sync_folder
from trainer_engine.datasets.shards.record import PLAIN, ROW_BYTES, Row, header_of, packed_row
from trainer_engine.datasets.shards.shard import INDEX, SHARD, Reading, write_index

LARGEST_BYTES = 1 << 30
"""A shard of this size gets no further entries."""


class Entry(NamedTuple):
    """What is to be stored."""

    address: bytes
    content: bytes
    coding: int = PLAIN
    written: int | None = None
    """Seconds since 1970; None for now."""


class ShardWriter:
    """Appends to one shard after another. Each is locked, so that no other process writes to it; ``close`` lets the last one go.

    It goes on with the newest shard that has room and no writer. What a killed writer left incomplete there is cut off first.
    """

    def __init__(self, folder: Path, limit_bytes: int = LARGEST_BYTES, *, is_short_lived: bool = False) -> None:
        """``is_short_lived``: the entries are removed soon, so they get shards without older entries."""
        self.folder = folder
        self.is_short_lived = is_short_lived
        self.limit_bytes = limit_bytes
        self.others = 0
        """Number of shards that other writers had locked when this one last chose a shard."""
        self._shard: Path | None = None
        self._descriptor = -1
        self._end = 0

    def others_write(self) -> bool:
        """Whether other writers have shards of this folder. Raises OSError."""
        self._choose(0)
        return self.others > 0

    def append(self, entries: Iterable[Entry]) -> None:
        """Writes entries and syncs them. After an error none of the entries of the current shard is left. Raises OSError."""
        waiting: list[Entry] = []
        size = 0
        for entry in entries:
            if self._shard and waiting and self._end + size + len(entry.content) > self.limit_bytes:
                self._write(waiting)
                self.close()
                waiting, size = [], 0
            self._choose(len(entry.content))
            waiting.append(entry)
            size += len(entry.content)
        if waiting:
            self._write(waiting)

    def _write(self, entries: list[Entry]) -> None:
        assert self._shard is not None
        rows, parts, offset = [], [], self._end
        for entry in entries:
            written = int(time.time()) if entry.written is None else entry.written
            rows.append(Row(entry.address, offset, len(entry.content), written, entry.coding))
            parts += [header_of(entry.address, entry.content, entry.coding, written), entry.content]
            offset = rows[-1].end
        index = os.open(self._shard.with_suffix(INDEX), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        rows_end = os.fstat(index).st_size
        try:
            _write_all(self._descriptor, b"".join(parts), self._end)
            os.fsync(self._descriptor)
            _write_all(index, b"".join(map(packed_row, rows)))
        except OSError:
            os.ftruncate(index, rows_end)
            os.ftruncate(self._descriptor, self._end)
            raise
        finally:
            os.close(index)
        self._end = offset

    def _choose(self, needed: int) -> None:
        """Takes hold of a shard with room for ``needed`` bytes."""
        if self._shard is not None and (self._end == 0 or self._end + needed <= self.limit_bytes):
            return
        self.close()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.others = 0
        for path in () if self.is_short_lived else sorted(self.folder.glob(f"*{SHARD}"), reverse=True):
            if self._adopt(path, needed):
                return
        path = self.folder / f"{time.time_ns():016x}-{secrets.token_hex(3)}{SHARD}"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        is_locked(self._descriptor)
        sync_folder(self.folder)
        self._shard, self._end = path, 0

    def _adopt(self, path: Path, needed: int) -> bool:
        """Goes on with a shard, unless it is full or another process writes to it."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        is_mine = is_locked(descriptor)
        self.others += not is_mine
        status = os.fstat(descriptor)
        if not is_mine or status.st_nlink == 0 or status.st_size + needed > self.limit_bytes:
            os.close(descriptor)
            return False
        end = repair(path)
        os.ftruncate(descriptor, end)
        self._shard, self._descriptor, self._end = path, descriptor, end
        return True

    def close(self) -> None:
        """Lets go of the shard. The next ``append`` takes hold of one again. An empty shard is removed."""
        if self._shard is not None:
            if self._end == 0:
                self._shard.unlink(missing_ok=True)
                self._shard.with_suffix(INDEX).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._shard, self._descriptor, self._end = None, -1, 0


def repair(path: Path) -> int:
    """Makes the index of a locked shard say what the shard holds. Returns the end of the last complete record. Raises OSError."""
    reading = Reading(path)
    reading.read_on()
    index = path.with_suffix(INDEX)
    if reading.is_rebuilt or not index.exists() or index.stat().st_size != len(reading.found) * ROW_BYTES:
        write_index(path, reading.found)
    return reading.end


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """A descriptor of a shard that nobody else writes to during the block; None if somebody does, or if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor if is_locked(descriptor) and os.fstat(descriptor).st_nlink else None
    finally:
        os.close(descriptor)


def is_locked(descriptor: int) -> bool:
    """Locks an open file for this process, without waiting. False if another has it, or if the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _write_all(descriptor: int, content: bytes, offset: int | None = None) -> None:
    """Writes all bytes, at ``offset`` or at the end. Raises OSError."""
    view, done = memoryview(content), 0
    while done < len(view):
        part = view[done:]
        done += os.write(descriptor, part) if offset is None else os.pwrite(descriptor, part, offset + done)

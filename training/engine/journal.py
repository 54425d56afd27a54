"""Reads a run's journal from a byte offset. Returns complete lines only; a broken line does not stop the reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trainer_engine.contract.events import JournalEntry, decode

CHUNK_BYTES = 256 * 1024
LONGEST_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class BrokenLine:
    """A line that holds no event."""

    offset: int
    """Byte at which the line begins."""
    reason: str


@dataclass(frozen=True)
class Reading:
    """The result of reading a journal once."""

    entries: tuple[JournalEntry | BrokenLine, ...]
    offset: int
    """Byte at which the next reading begins."""


def read_entries(path: Path, offset: int) -> Reading:
    """The complete lines after ``offset``, up to about 256 KiB. A line that is still being written is left for the next reading.

    A missing journal counts as empty. Raises OSError if it exists and cannot be read.
    """
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            chunk = _whole_lines(stream)
    except FileNotFoundError:
        return Reading((), offset)
    entries: list[JournalEntry | BrokenLine] = []
    position = offset
    for line in chunk.split(b"\n"):
        if line.strip():
            entries.append(_decode(line, position))
        position += len(line) + 1
    return Reading(tuple(entries), offset + len(chunk))


def last_entry(path: Path) -> JournalEntry | None:
    """The entry in the last complete line of a journal; None if there is none or it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - CHUNK_BYTES))
            tail = stream.read()
    except OSError:
        return None
    lines = tail[: tail.rfind(b"\n") + 1].splitlines()
    entry = _decode(lines[-1], 0) if lines else None
    return entry if isinstance(entry, JournalEntry) else None


def _whole_lines(stream: BinaryIO) -> bytes:
    """A chunk, cut after its last line's end; a line longer than the chunk is read until its end."""
    chunk = stream.read(CHUNK_BYTES)
    while b"\n" not in chunk and len(chunk) < LONGEST_LINE_BYTES:
        more = stream.read(CHUNK_BYTES)
        if not more:
            break
        chunk += more
    if b"\n" not in chunk and len(chunk) >= LONGEST_LINE_BYTES:
        return chunk
    return chunk[: chunk.rfind(b"\n") + 1]


def _decode(line: bytes, offset: int) -> JournalEntry | BrokenLine:
    try:
        entry = decode(line)
    except (ValueError, RecursionError) as error:
        return BrokenLine(offset, str(error)[:200])
    typed: tuple[tuple[object, type], ...] = ((entry.seq, int), (entry.data, dict), (entry.type, str))
    if not all(isinstance(value, kind) for value, kind in typed):
        return BrokenLine(offset, "its fields have the wrong types")
    return entry

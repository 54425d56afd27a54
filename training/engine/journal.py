"""Reads a run's journal from a byte offset. Returns complete lines only; a broken line does not stop the reading.

Everything behind this module relies on the types that are checked here: the log, ``status``, the streams and the webhooks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from trainer_engine.contract.events import EventType, JournalEntry, Severity, decode

CHUNK_BYTES = 256 * 1024
LONGEST_LINE_BYTES = 16 * 1024 * 1024
DEEPEST = 64
"""Levels of nesting in an event; databases store a thousand."""

Word = Annotated[str, StringConstraints(pattern=r"^[\w.-]*$", max_length=40)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _moment(text: str) -> str:
    """The text, if it is a time with an offset from UTC. Raises ValueError."""
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("it has no offset from UTC")
    return text


Moment = Annotated[str, StringConstraints(pattern=r"^[2-9]\d\d\d-", max_length=40), AfterValidator(_moment)]


class _Shape(BaseModel):
    """JSON that may have further fields. Numbers and texts are not converted into one another."""

    model_config = ConfigDict(strict=True)


class _Media(_Shape):
    file: str
    mime_type: Annotated[str, StringConstraints(pattern=r"^[\w.+-]+/[\w.+-]+$")] = "image/png"


class _Checkpoint(_Shape):
    path: str
    step: Count | None = None
    size_bytes: Count | None = None


class _Line(_Shape):
    """The fields of every line, and those that some types add."""

    seq: Count
    type: Word
    timestamp: Moment
    severity: Annotated[str, StringConstraints(pattern=f"^({'|'.join(Severity)})$")]
    title: str
    message: str
    body: str
    data: dict[str, Any]
    checkpoint: _Checkpoint | None = None
    stage: dict[str, Any] | None = None
    images: list[_Media] = []
    videos: list[_Media] = []


class _Progress(_Shape):
    """``data`` of a progress event."""

    step: Count | None = None
    total_steps: Count | None = None
    epoch: int | None = None
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    eta_seconds: float | None = None
    samples_per_second: float | None = None
    seconds_per_step: float | None = None
    metrics: dict[str, Any] = {}


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
        _check(entry)
    except ValidationError as error:
        names = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors(include_url=False))
        return BrokenLine(offset, f"these fields have wrong values: {', '.join(names)}"[:200])
    except (ValueError, RecursionError) as error:
        return BrokenLine(offset, str(error)[:200])
    return entry


def _check(entry: JournalEntry) -> None:
    """Raises ValueError if a field has a type or a value that the server cannot store or show; ValidationError is one too."""
    _Line.model_validate({**entry.extra, **vars(entry)})
    waiting: list[tuple[Any, int]] = [(entry.data, 1), (entry.extra, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        if isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"{item} is not a JSON number")
        parts = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting.extend((part, depth + 1) for part in parts)
    if entry.type == EventType.PROGRESS.value:
        _Progress.model_validate(entry.data)

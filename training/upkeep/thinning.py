"""Thins the progress events of runs that ended long ago, in the log and in the journal.

About a thousand events, evenly spread, stay of each run; the first and the last one are among them. Events keep their indexes for ever.
A progress event before which others were removed says so: ``"thinned": {"since_index": 120, "count": 39}`` in the event with index 160
means that 39 progress events with indexes from 120 to 159 are gone. Every index without an event lies in such a range.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from django.db import transaction
from django.db.models import QuerySet

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.events import EventType
from training.models import TERMINAL, Event, Job

KEPT = 1000
"""About how many progress events stay of a run."""
ROWS_AT_ONCE = 5000
PROGRESS_LINE = re.compile(rb'\{"seq":\d+,"type":"' + re.escape(EventType.PROGRESS.value.encode()) + rb'"')


def kept_positions(count: int) -> list[int]:
    """Which of ``count`` progress events stay: positions from 0, evenly spread, with the first and the last."""
    if count <= KEPT + 1:
        return list(range(count))
    return sorted({*(position * (count - 1) // (KEPT - 1) for position in range(KEPT)), count - 1})


def thin_events(job: Job) -> int:
    """Thin the progress events of an ended job in the log. Returns how many were removed. It can be repeated if it was interrupted."""
    if job.status not in TERMINAL:
        return 0
    rows: QuerySet[Event] = Event.objects.filter(job=job, type=EventType.PROGRESS.value)
    indexes = list(rows.order_by("index").values_list("index", flat=True))
    positions = kept_positions(len(indexes))
    if len(positions) == len(indexes):
        return 0
    before = 0
    for group in _groups(positions, indexes):
        with transaction.atomic():
            for first, last in group:
                before += _thin_between(rows, first, last)
    return before


def _groups(positions: Sequence[int], indexes: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """(index of a kept event, index of the next kept one), in groups for one transaction each."""
    pairs: list[tuple[int, int]] = []
    size = 0
    for one, other in zip(positions, positions[1:], strict=False):
        pairs.append((indexes[one], indexes[other]))
        size += other - one
        if size >= ROWS_AT_ONCE:
            yield pairs
            pairs, size = [], 0
    yield pairs


def _thin_between(rows: QuerySet[Event], first: int, last: int) -> int:
    """Remove the progress events between two that stay, and note it in the second one."""
    between = rows.filter(index__gt=first, index__lt=last)
    earlier = [text for text in between.values_list("payload__thinned", flat=True) if text]
    count, _ = between.delete()
    if not count:
        return 0
    event = rows.get(index=last)
    known = [*earlier, *([event.payload["thinned"]] if "thinned" in event.payload else [])]
    event.payload["thinned"] = {"since_index": first + 1, "count": count + sum(one["count"] for one in known)}
    event.save(update_fields=["payload"])
    return count


def thin_journal(journal: Path) -> int:
    """Thin the progress lines of a journal that nothing is appended to any more. Returns the bytes saved. Raises OSError."""
    try:
        with journal.open("rb") as lines:
            count = sum(1 for line in lines if PROGRESS_LINE.match(line))
    except FileNotFoundError:
        return 0
    kept = set(kept_positions(count))
    if len(kept) == count:
        return 0
    before = journal.stat().st_size
    with journal.open("rb") as lines:
        write_atomically(journal, b"".join(_kept_lines(lines, kept)))
    return before - journal.stat().st_size


def _kept_lines(lines: Iterable[bytes], kept: set[int]) -> Iterator[bytes]:
    position = 0
    for line in lines:
        if PROGRESS_LINE.match(line):
            position += 1
            if position - 1 not in kept:
                continue
        yield line


def last_change(folder: Path) -> float:
    """When anything in a run folder last changed, in seconds since 1970; 0 if it cannot be read."""
    try:
        return max(entry.stat(follow_symlinks=False).st_mtime for entry in os.scandir(folder))
    except (OSError, ValueError):
        return 0.0


def has_ended(folder: Path) -> bool:
    """Whether a run folder says that its run has ended."""
    try:
        return isinstance(json.loads((folder / "exit.json").read_bytes()), dict)
    except (OSError, ValueError):
        return False

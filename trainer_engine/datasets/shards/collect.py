"""Removes entries of caches that no run needs any more. Standard library only: used by the command line and the server."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer_engine.datasets.shards import older
from trainer_engine.datasets.shards.folder import SHARDS, ShardFolder
from trainer_engine.datasets.shards.record import Row
from trainer_engine.datasets.shards.shard import SHARD, Reading, bad_offsets, read_content, remove
from trainer_engine.datasets.shards.stock import Stored, stored_entries
from trainer_engine.datasets.shards.uses import remove_unheld, use_lists
from trainer_engine.datasets.shards.writer import Entry, ShardWriter, locked

DAY = 86_400
YOUNG_SECONDS = 3600
"""Entries that were used within this time always stay: a run may be about to read them."""
GROUP_BYTES = 64 << 20
"""Entries that are moved to another shard together."""


@dataclass(frozen=True)
class Cleaning:
    """What was removed from caches, or would be."""

    entries: int
    bytes: int
    kept_entries: int
    kept_bytes: int
    is_done: bool
    """False for a dry run."""
    busy: int = 0
    """Entries that stay for now, because a run is writing to their shard, or has begun to read them."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def collect(
    folders: Sequence[Path],
    *,
    unused_days: float | None = None,
    keep_bytes: int | None = None,
    remove_now: bool = False,
    now: float | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> Cleaning:
    """Removes entries of caches that no run has used for ``unused_days``, then the longest unused ones until ``keep_bytes`` are left.

    Without ``remove_now`` it only counts. Safe beside runs that read and write: entries of runs that live and shards with a writer are left
    alone, and a run that misses an entry computes it again. ``on_progress`` is called after each shard. Raises OSError, as for a full disk;
    nothing is lost then.
    """
    today = time.time() if now is None else now
    entries = sorted((entry for folder in folders for entry in stored_entries(folder)), key=lambda entry: entry.used)
    left, gone = sum(entry.bytes for entry in entries), list[Stored]()
    held = {address for folder in folders for address in held_addresses(folder)}
    for entry in entries:
        is_old = unused_days is not None and today - entry.used > unused_days * DAY
        is_too_much = keep_bytes is not None and left > keep_bytes
        if (is_old or is_too_much) and today - entry.used > YOUNG_SECONDS and entry.address not in held:
            gone.append(entry)
            left -= entry.bytes
    busy = _remove(gone, folders, on_progress) if remove_now else []
    for folder in folders if remove_now else ():
        _tidy(folder, unused_days, today)
    removed = len(gone) - len(busy)
    removed_bytes = sum(entry.bytes for entry in gone) - sum(entry.bytes for entry in busy)
    total = sum(entry.bytes for entry in entries)
    return Cleaning(removed, removed_bytes, len(entries) - removed, total - removed_bytes, remove_now, len(busy))


def held_addresses(folder: Path) -> Iterator[bytes]:
    """The entries that runs which live read or are about to read."""
    for one in use_lists(folder):
        if one.is_held:
            yield from one.addresses


def _remove(gone: Iterable[Stored], folders: Sequence[Path], on_progress: Callable[[], None]) -> list[Stored]:
    """Removes entries. Returns those that stay: a run is writing to their shard, or has begun to read them meanwhile."""
    by_shard: Mapping[Path, list[Stored]] = defaultdict(list)
    busy: list[Stored] = []
    for entry in gone:
        by_shard[entry.path.parent if entry.place is None else entry.path].append(entry)
    for shard, entries in by_shard.items():
        held = {address for folder in folders for address in held_addresses(folder)}
        free = [entry for entry in entries if entry.address not in held]
        busy += [entry for entry in entries if entry.address in held]
        in_shard = {entry.place.row.offset for entry in free if entry.place}
        for entry in free:
            if entry.place is None:
                entry.path.unlink(missing_ok=True)
        if in_shard and not compact(shard, in_shard):
            busy += free
        on_progress()
    return busy


def release(folder: Path, addresses: Collection[str], run: str = "") -> int:
    """Removes entries that a run needs no more, except those in lists of uses: other runs read these. Returns how many it removed.

    ``run``: the fact of this name in the run's own lists, which keep nothing. Shards that another process writes to are left alone.
    Raises OSError.
    """
    wanted = {bytes.fromhex(address) for address in addresses}
    for one in use_lists(folder):
        if not run or one.facts.get("run") != run:
            wanted.difference_update(one.addresses)
    by_shard: Mapping[Path, set[int]] = defaultdict(set)
    for place in ShardFolder(folder / SHARDS).places() if wanted else ():
        if place.row.address in wanted:
            by_shard[place.shard].add(place.row.offset)
    return sum(len(offsets) for shard, offsets in by_shard.items() if compact(shard, offsets))


def compact(shard: Path, offsets: set[int]) -> bool:
    """Moves the entries of a shard to new ones, except those at ``offsets`` and damaged ones. False if a run is writing to it.

    Raises OSError; the shard stays then.
    """
    with locked(shard) as mine:
        if mine is None:
            return not shard.exists()
        reading = Reading(shard)
        reading.read_on()
        kept = [row for row in reading.rows if row.offset not in offsets]
        writer = ShardWriter(shard.parent)
        try:
            for group in _groups(kept):
                writer.append(_moved(mine, group))
        finally:
            writer.close()
        remove(shard)
    return True


def _groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows whose entries fit into memory together."""
    group: list[Row] = []
    size = 0
    for row in rows:
        if group and size + row.length > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(row)
        size += row.length
    if group:
        yield group


def _moved(shard: int, rows: Iterable[Row]) -> Iterator[Entry]:
    """The sound entries of an open shard, with the time when they were written."""
    for row in rows:
        content = read_content(shard, row)
        if content is not None:
            yield Entry(row.address, content, row.coding, row.written)


def _tidy(folder: Path, unused_days: float | None, today: float) -> None:
    """Removes what nobody reads: damaged entries, and lists of uses that are older than everything that stays."""
    for path in sorted((folder / SHARDS).glob(f"*{SHARD}")):
        if bad_offsets(path):
            compact(path, set())
    for path in (folder / older.QUARANTINE).glob("*"):
        if older.QUARANTINED.fullmatch(path.name):
            path.unlink(missing_ok=True)
    if unused_days is not None:
        for one in use_lists(folder):
            if today - one.used > unused_days * DAY:
                remove_unheld(one.path)

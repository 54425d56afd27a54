"""What caches hold, and whether it is sound. Standard library only: used by the command line and the server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer_engine.datasets.shards import older
from trainer_engine.datasets.shards.folder import SHARDS, Place, ShardFolder
from trainer_engine.datasets.shards.record import ROW_BYTES
from trainer_engine.datasets.shards.shard import INDEX, SHARD, is_sound
from trainer_engine.datasets.shards.uses import USES, UseList, use_heads, use_lists
from trainer_engine.datasets.shards.writer import locked, repair

MARKS = (SHARDS, older.QUARANTINE, USES)
"""Names of folders that only a cache has."""

Advance = Callable[[int, int], None]
"""(done, total) bytes."""


def is_cache(folder: Path) -> bool:
    """Whether a folder holds entries of a cache."""
    return any((folder / mark).is_dir() for mark in MARKS) or next(older.entries_of(folder), None) is not None


class Stored(NamedTuple):
    """An entry on disk."""

    address: bytes
    bytes: int
    used: float
    """Seconds since 1970: when a run last used it, or else when it was written."""
    place: Place | None
    """None for an entry in a file of its own."""
    path: Path
    """Its shard, or its own file."""


@dataclass(frozen=True)
class CacheStats:
    """What one cache holds."""

    folder: str
    entries: int
    bytes: int
    files: int
    """Shards, indexes and entries in files of their own."""
    oldest: float | None
    """Seconds since 1970 of the last use of the entry that was not used for longest; None without entries."""
    newest: float | None
    uses: list[dict[str, Any]] = field(default_factory=list)
    """Kind, family and model of what runs used, with the number of entries and the time of the last use; the newest first."""
    unused: int = 0
    """Entries that no run has noted."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def overview(folder: Path) -> dict[str, Any]:
    """What a cache holds as far as the sizes of its files say: quick enough to answer a request."""
    entries = size = files = 0
    for path in (folder / SHARDS).glob("*"):
        status = path.stat()
        files += 1
        size += status.st_size
        entries += status.st_size // ROW_BYTES if path.suffix == INDEX else 0
    for entry in older.entries_of(folder):
        entries, size, files = entries + 1, size + entry.stat().st_size, files + 1
    uses = [
        {**{name: str(facts.get(name, "")) for name in ("kind", "family", "model")}, "entries": count, "last_used": used}
        for used, facts, count in use_heads(folder)
    ]
    return {"folder": str(folder), "entries": entries, "bytes": size, "files": files, "uses": uses}


def stored_entries(folder: Path, lists: Sequence[UseList] | None = None) -> list[Stored]:
    """Every entry of a cache."""
    used: dict[bytes, float] = {}
    for one in use_lists(folder) if lists is None else lists:
        for address in one.addresses:
            used[address] = max(one.used, used.get(address, 0.0))
    found = []
    for place in ShardFolder(folder / SHARDS).places():
        row = place.row
        found.append(Stored(row.address, row.record_bytes, max(row.written, used.get(row.address, 0.0)), place, place.shard))
    for entry in older.entries_of(folder):
        status = _status(entry)
        if status is not None:
            address = bytes.fromhex(entry.name[: older.ADDRESS])
            found.append(Stored(address, status.st_size, max(status.st_mtime, used.get(address, 0.0)), None, Path(entry.path)))
    return found


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def stats(folder: Path) -> CacheStats:
    """Counts what a cache holds. Reads the indexes and no content."""
    lists = list(use_lists(folder))
    entries = stored_entries(folder, lists)
    there, listed = {entry.address for entry in entries}, set[bytes]()
    merged: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in sorted(lists, key=lambda one: -one.used):
        facts = tuple(str(one.facts.get(name, "")) for name in ("kind", "family", "model"))
        known = there.intersection(one.addresses)
        listed |= known
        row = merged.setdefault((facts[0], facts[1], facts[2]), {"addresses": set(), "last_used": one.used})
        row["addresses"] |= known
    uses = [
        {"kind": kind, "family": family, "model": model, "entries": len(row["addresses"]), "last_used": row["last_used"]}
        for (kind, family, model), row in merged.items()
    ]
    times = [entry.used for entry in entries]
    return CacheStats(
        str(folder),
        entries=len(entries),
        bytes=sum(entry.bytes for entry in entries),
        files=_files(folder, entries),
        oldest=min(times, default=None),
        newest=max(times, default=None),
        uses=uses,
        unused=len(there - listed),
    )


def _files(folder: Path, entries: Iterable[Stored]) -> int:
    shards = folder / SHARDS
    return sum(entry.place is None for entry in entries) + (sum(1 for _ in shards.iterdir()) if shards.is_dir() else 0)


@dataclass(frozen=True)
class Verdict:
    """The result of reading every entry of a cache."""

    folder: str
    entries: int
    bytes: int
    damaged: list[str]
    """Addresses of the entries that are quarantined now; a run that needs them computes them again."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(folder: Path, on_progress: Advance = lambda done, total: None) -> Verdict:
    """Reads every entry of a cache, quarantines the damaged ones, and repairs indexes that no run is writing to."""
    shards = ShardFolder(folder / SHARDS)
    for path in sorted((folder / SHARDS).glob(f"*{SHARD}")):
        with locked(path) as mine:
            if mine is not None:
                repair(path)
    entries = sorted(stored_entries(folder), key=lambda entry: (entry.path, entry.place.row.offset if entry.place else 0))
    shards.refresh()
    total, done, damaged = sum(entry.bytes for entry in entries), 0, []
    for entry in entries:
        if not _is_sound(entry):
            damaged.append(entry.address.hex())
            if entry.place is not None:
                shards.quarantine(entry.place)
        done += entry.bytes
        on_progress(done, total)
    return Verdict(str(folder), len(entries), total, damaged)


def _is_sound(entry: Stored) -> bool:
    if entry.place is None:
        return older.read(entry.path) is not None
    try:
        with entry.path.open("rb", buffering=0) as stream:
            return is_sound(stream.fileno(), entry.place.row)
    except FileNotFoundError:  # it was moved to a new shard in this moment
        return True

"""The entries of one cache: in shards, and in files of older versions. Readers in several threads and processes may share it."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trainer_engine.contract.files import open_regular
from trainer_engine.datasets.shards.record import Row
from trainer_engine.datasets.shards.shard import SHARD, Reading, mark_bad, read_content

SHARDS = "shards"
"""Name of the folder of shards in the folder of a cache."""
MOST_OPEN = 128
"""Shards that one process keeps open of one cache."""

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where an entry lies."""

    shard: Path
    row: Row


class ShardFolder:
    """Finds and reads the entries in the shards of a folder. ``refresh`` takes up what other processes have written since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._readings: dict[Path, Reading] = {}
        self._places: dict[bytes, Place] = {}
        self._spare: dict[bytes, list[Place]] = {}
        """Further places of entries that two processes have made at the same time."""
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()
        self._lock = threading.Lock()
        self._is_read = False

    def refresh(self) -> None:
        """Reads the indexes on, and forgets shards that are gone. A folder that cannot be read has no entries."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        self._is_read = True
        try:
            there = {Path(entry.path) for entry in os.scandir(self.folder) if entry.name.endswith(SHARD)}
        except OSError:
            there = set()
        gone = self._readings.keys() - there
        if gone:
            self._forget(gone)
        for path in sorted(there):
            reading = self._readings.setdefault(path, Reading(path))
            try:
                reading.read_on()
            except OSError:  # it was removed in this moment
                continue
            if reading.is_rebuilt:
                log.warning("The index of the cache shard %s is missing or damaged; its entries were read from the shard.", path)
            for place in [Place(path, row) for row in reading.rows]:
                self._add(place)

    def _add(self, place: Place) -> None:
        first = self._places.setdefault(place.row.address, place)
        if first is not place:
            self._spare.setdefault(place.row.address, []).append(place)

    def _forget(self, gone: set[Path]) -> None:
        left = [place for place in self._all() if place.shard not in gone]
        self._places, self._spare = {}, {}
        for path in gone:
            del self._readings[path]
            self._open.pop(path, None)
        for place in left:
            self._add(place)

    def _all(self) -> Iterator[Place]:
        yield from self._places.values()
        for places in self._spare.values():
            yield from places

    def __contains__(self, address: bytes) -> bool:
        """Whether a shard holds the entry, as far as is known."""
        if not self._is_read:
            self.refresh()
        return address in self._places

    def places(self) -> list[Place]:
        """Every entry, those that are there twice as well."""
        self.refresh()
        with self._lock:
            return list(self._all())

    def read(self, address: bytes) -> tuple[Row, bytes] | None:
        """(row, content) of an entry; None if it is missing or damaged. A damaged record is remembered as such, and reported."""
        if address not in self:
            self.refresh()
        while (place := self._places.get(address)) is not None:
            try:
                stream = self._opened(place.shard)  # held while it is read: other threads may let go of it meanwhile
                content = read_content(stream.fileno(), place.row)
            except FileNotFoundError:  # another process has moved its entries to a new shard
                self.refresh()
                if self._places.get(address) is place:
                    return None
                continue
            if content is not None:
                return place.row, content
            self.quarantine(place)
            self.refresh()  # another process may have written it again
        return None

    def quarantine(self, place: Place) -> None:
        """Remembers that a record is damaged, so that no process reads it again; it stays in its shard until that is compacted."""
        with self._lock:
            if self._places.get(place.row.address) != place:
                return  # another thread was first
            spare = self._spare.get(place.row.address)
            if spare:
                self._places[place.row.address] = spare.pop()
            else:
                del self._places[place.row.address]
            mark_bad(place.shard, place.row)
        name, where = place.row.address.hex(), f"{place.shard}, byte {place.row.offset}"
        log.warning("The cache entry %s was damaged (%s); it is not read again, and is computed again.", name, where)

    def _opened(self, shard: Path) -> BinaryIO:
        """The open shard. One that is let go of is closed when no thread reads it any more."""
        stream = self._open.get(shard)
        if stream is None:
            stream = open_regular(shard)  # closed when the last reference is gone
            with self._lock:
                self._open[shard] = stream
                while len(self._open) > MOST_OPEN:
                    self._open.popitem(last=False)
        return stream

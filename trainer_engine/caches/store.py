"""Stores tensors on disk, addressed by the inputs that they were computed from.

An entry is a safetensors text in a shard (``trainer_engine/datasets/shards``). Its address is the sha256 of a canonical JSON of everything
that its content depends on, so an entry is never out of date. Several processes may read and write one store: the same address always
means the same content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer_engine.caches.packing import pack, unpack
from trainer_engine.contract.atomic import means_full
from trainer_engine.contract.errors import DiskFull
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.datasets.shards import older
from trainer_engine.datasets.shards.collect import release
from trainer_engine.datasets.shards.folder import SHARDS, ShardFolder
from trainer_engine.datasets.shards.record import PACKED, PLAIN
from trainer_engine.datasets.shards.uses import TOUCHED_SECONDS, HeldUse, hold_use, remove_unheld, use_lists
from trainer_engine.datasets.shards.writer import Entry, ShardWriter
from trainer_engine.families.base import Family

log = logging.getLogger(__name__)

SCHEMA = 1
"""Increases when a change of the code changes the content of entries for the same inputs."""

MEMORY_BYTES = 1 << 30
"""The most that one process keeps of one cache in memory."""


def address_of(kind: str, **made_from: Any) -> str:
    """The address of an entry: the sha256 of everything it depends on, as 64 hexadecimal digits."""
    return hashlib.sha256(_canonical({"kind": kind, "schema": SCHEMA, **made_from}).encode()).hexdigest()


def address_by(varying: str, kind: str, **made_from: Any) -> Callable[[str], str]:
    """``address_of`` of many entries that depend on the same but for one text, as a function of that text; in a fifth of the time."""
    fixed = {"kind": kind, "schema": SCHEMA, **made_from}
    before = "".join(f"{part}," for part in _members({name: one for name, one in fixed.items() if name < varying}))
    behind = "".join(f",{part}" for part in _members({name: one for name, one in fixed.items() if name > varying}))
    start = hashlib.sha256(f"{{{before}{encode_basestring_ascii(varying)}:".encode())

    def address(text: str) -> str:
        state = start.copy()
        state.update(f"{encode_basestring_ascii(text)}{behind}}}".encode())
        return state.hexdigest()

    return address


def _canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces, in a third of the time that the encoder of the standard library takes to be set up."""
    kind = type(value)
    if kind is str:
        return encode_basestring_ascii(value)
    if kind is int:
        return str(value)
    if kind is list:
        return f"[{','.join(map(_canonical, value))}]"
    if kind is dict:
        return f"{{{','.join(_members(value))}}}"
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _members(value: Mapping[str, Any]) -> Iterator[str]:
    """``"name":value`` of each member of an object, sorted by name."""
    for name in sorted(value):
        one = value[name]
        yield f"{encode_basestring_ascii(name)}:{encode_basestring_ascii(one) if type(one) is str else _canonical(one)}"


class Encoded(Enum):
    """When the entries of a cache are computed."""

    AHEAD = "ahead"
    """Before training begins."""
    ON_DEMAND = "on demand"
    """When a batch needs one that is not there yet. It is stored for the next time."""
    NEVER_STORED = "never stored"
    """When a batch needs one. Entries that an earlier run left are read."""

    @classmethod
    def of(cls, *, on_demand: bool, disabled: bool) -> Encoded:
        return cls.NEVER_STORED if disabled else cls.ON_DEMAND if on_demand else cls.AHEAD


def entries_of(kind: str, family: Family) -> dict[str, str]:
    """Facts about the entries that a run uses, for people who look at the cache."""
    model = family.options.model
    return {"kind": kind, "family": family.spec.name, "model": model.pretrained_model_name_or_path or model.model_flavour or ""}


class CacheStore:
    """A folder of entries. ``hashes`` caches the content hashes of the files that entries are computed from. Thread-safe."""

    def __init__(self, folder: Path, *, compress: bool = False) -> None:
        """``compress``: entries that get clearly smaller are stored compressed. Both kinds are always read."""
        self.folder = folder
        self.hashes = FileHashes(folder / "hashes.jsonl")
        self.compress = compress
        self._shards = ShardFolder(folder / SHARDS)
        self._writing = threading.RLock()
        self._used: list[HeldUse] = []
        self._touched = 0.0

    def holds(self, address: str) -> bool:
        """Whether the entry is there, as far as the indexes say; only ``get`` reads its content."""
        return bytes.fromhex(address) in self._shards or older.is_complete(older.entry_path(self.folder, address))

    def refresh(self) -> None:
        """Take up the entries that other processes have written since."""
        self._shards.refresh()

    def get(self, address: str) -> dict[str, Tensor] | None:
        """The entry; None if it is missing or damaged. A damaged one is quarantined, and the caller computes it again."""
        found = self._shards.read(bytes.fromhex(address))
        if found is None:
            return self._get_older(address)
        row, content = found
        self._touch()
        return load(unpack(content) if row.coding == PACKED else content)

    def _get_older(self, address: str) -> dict[str, Tensor] | None:
        path = older.entry_path(self.folder, address)
        content = older.read(path)
        try:
            return None if content is None else load(content)
        except SafetensorError:
            older.quarantine(path)
            return None

    def put(self, address: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one entry and sync it. Raises DiskFull."""
        self.put_all({address: tensors})

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]], writer: ShardWriter | None = None) -> None:
        """Write several entries with one sync. Without ``writer`` a shard is locked for this call alone. Raises DiskFull."""
        own = writer or self.writer()
        try:
            with self._writing:
                own.append(self._entry(address, tensors) for address, tensors in entries.items())
        except OSError as error:
            if means_full(error):
                raise DiskFull(f"No space is left for the cache in {self.folder}.", hint="free some space, or set cache_dir") from error
            raise
        finally:
            if writer is None:
                own.close()
        self.refresh()

    def writer(self, *, is_short_lived: bool = False) -> ShardWriter:
        """A writer for ``put_all``, which keeps a shard to itself until it is closed. ``is_short_lived``: its entries are released soon."""
        return ShardWriter(self.folder / SHARDS, is_short_lived=is_short_lived)

    def release(self, addresses: Collection[str], writer: ShardWriter, run: str = "") -> int:
        """Remove entries that no run needs any more; ``writer`` lets go of its shard for it. Returns how many were removed.

        ``run``: as in ``note_use_of_epoch``. An entry that cannot be removed stays; ``simpletuner cache gc`` removes it later.
        """
        with self._writing:
            try:
                writer.close()
                return release(self.folder, addresses, run)
            except OSError as error:
                log.warning("The cache %s keeps entries that are needed no more: %s", self.folder, error)
                return 0
            finally:
                self.refresh()

    def _entry(self, address: str, tensors: Mapping[str, Tensor]) -> Entry:
        content = save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})
        packed = pack(content, tensors) if self.compress else None
        return Entry(bytes.fromhex(address), content, PLAIN) if packed is None else Entry(bytes.fromhex(address), packed, PACKED)

    def note_use(self, addresses: Iterable[str], **facts: Any) -> None:
        """Note that this run reads these entries: ``simpletuner cache gc`` leaves them alone while it lives, and knows afterwards when
        they were last used. Raises DiskFull."""
        try:
            self._used.append(hold_use(self.folder, addresses, facts))
        except OSError as error:
            if means_full(error):
                raise DiskFull(f"No space is left for the cache in {self.folder}.", hint="free some space, or set cache_dir") from error
            raise
        self._touched = time.monotonic()

    def note_use_of_epoch(self, addresses: Iterable[str], run: str, **facts: Any) -> None:
        """``note_use`` of a run whose entries change with each epoch: lists of its other epochs go. ``run`` tells it from other runs.

        Raises DiskFull.
        """
        before, self._used = self._used, []
        self.note_use(addresses, run=run, **facts)
        for one in before:
            one.let_go()
        kept = {one.path for one in self._used}
        for listed in use_lists(self.folder):
            if listed.facts.get("run") == run and listed.path not in kept:
                remove_unheld(listed.path)

    def _touch(self) -> None:
        """Renew the times of the run's lists now and then, while entries are read: file systems without locks have nothing else."""
        if time.monotonic() - self._touched < TOUCHED_SECONDS:
            return
        self._touched = time.monotonic()
        for one in self._used:
            with suppress(OSError):  # the list was removed: the next start notes the use again
                os.utime(one.path)


class InMemoryCache:
    """Keeps entries by address until they fill ``limit_bytes``, so that small sets are read from disk once. Thread-safe."""

    def __init__(self, limit_bytes: int = MEMORY_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._entries: dict[str, dict[str, Tensor]] = {}
        self._lock = threading.Lock()

    def get(self, address: str) -> dict[str, Tensor] | None:
        return self._entries.get(address)

    def keep(self, address: str, entry: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep an entry if it fits, and return it."""
        size = sum(tensor.nbytes for tensor in entry.values())
        with self._lock:
            if address not in self._entries and self.held_bytes + size <= self.limit_bytes:
                self._entries[address] = entry
                self.held_bytes += size
        return entry

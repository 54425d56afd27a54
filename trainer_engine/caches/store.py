"""Stores tensors on disk, addressed by the inputs that they were computed from.

An entry is one safetensors file (``entry_file``). Its address is the sha256 of a canonical JSON of everything that its content depends
on, so an entry is never out of date. Several processes may read and write one store: the same address always means the same content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from trainer_engine.caches.entry_file import DAMAGE, encode, end_of, is_sound
from trainer_engine.contract.atomic import means_full, sync_folder
from trainer_engine.contract.errors import DiskFull
from trainer_engine.datasets.hashes import FileHashes

SCHEMA = 1
"""Increases when a change of the code changes the content of entries for the same inputs."""
QUARANTINE = "set_aside"
"""Folder for damaged entries."""

MEMORY_BYTES = 1 << 30
"""The most that one process keeps of one cache in memory."""

log = logging.getLogger(__name__)


def address_of(kind: str, **made_from: Any) -> str:
    """The address of an entry: the sha256 of everything it depends on, as 64 hexadecimal digits."""
    document = {"kind": kind, "schema": SCHEMA, **made_from}
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class CacheStore:
    """A folder of entries. ``hashes`` caches the content hashes of the files that entries are computed from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes = FileHashes(folder / "hashes.jsonl")

    def path(self, address: str) -> Path:
        return self.folder / address[:2] / f"{address}.safetensors"

    def holds(self, address: str) -> bool:
        """Whether the entry exists and is as long as its header says; only ``get`` reads its content."""
        try:
            with self.path(address).open("rb") as stream:
                return end_of(stream.read) == os.fstat(stream.fileno()).st_size
        except (OSError, *DAMAGE):
            return False

    def get(self, address: str) -> dict[str, Tensor] | None:
        """The entry; None if it is missing or damaged. A damaged file is quarantined, and the caller computes the entry again."""
        path = self.path(address)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            if is_sound(content):
                return load(content)
        except (SafetensorError, *DAMAGE):
            pass
        self._quarantine(path)
        return None

    def put(self, address: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one entry atomically. Raises DiskFull."""
        self.put_all({address: tensors})

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write several entries, each atomically, with one sync of the folders. Raises DiskFull."""
        try:
            for folder in {self._write(address, tensors) for address, tensors in entries.items()}:
                sync_folder(folder)
        except OSError as error:
            if means_full(error):
                raise DiskFull(f"No space is left for the cache in {self.folder}.", hint="free some space, or set cache_dir") from error
            raise

    def _write(self, address: str, tensors: Mapping[str, Tensor]) -> Path:
        path = self.path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{address}.{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(encode(tensors))
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path.parent

    def _quarantine(self, path: Path) -> None:
        target = self.folder / QUARANTINE / f"{path.stem}.{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(exist_ok=True)
        try:
            path.replace(target)
        except FileNotFoundError:  # another process was first
            return
        log.warning("The cache entry %s was damaged; it was moved to %s and is computed again.", path.stem, target)


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

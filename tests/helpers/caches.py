"""Reads and damages the entries of a cache on disk."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from trainer_engine.caches.store import CacheStore
from trainer_engine.datasets.shards.folder import SHARDS, Place, ShardFolder
from trainer_engine.datasets.shards.record import HEADER_BYTES


def places_of(cache: Path) -> dict[str, Place]:
    """Address of each entry in the shards of a cache -> where it lies."""
    return {place.row.address.hex(): place for place in ShardFolder(cache / SHARDS).places()}


def entries_of(cache: Path) -> dict[str, dict[str, Tensor]]:
    """Address of each entry in the shards of a cache -> its tensors."""
    store = CacheStore(cache)
    return {address: tensors for address in places_of(cache) if (tensors := store.get(address)) is not None}


def flip_entry(cache: Path, address: str, share: float = 0.9) -> None:
    """Changes a bit of an entry, ``share`` of the way through its content."""
    place = places_of(cache)[address]
    position = place.row.offset + HEADER_BYTES + int(place.row.length * share)
    with place.shard.open("r+b") as stream:
        stream.seek(position)
        [byte] = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte ^ 4]))


def state_of(cache: Path) -> dict[str, bytes]:
    """Name -> content of every file of entries."""
    kinds = ("*.shard", "*.safetensors")
    return {str(path): path.read_bytes() for kind in kinds for path in sorted(cache.rglob(kind))}

"""Tensors on disk, found by what they were made from.

An entry is one safetensors file. Its address is the sha256 of a canonical JSON of everything that its content depends on, so an
entry is never out of date; its header carries the sha256 of its content, so a damaged one is noticed. Several processes may read
and write one store: the same address always means the same content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer_engine.contract.atomic import means_full, sync_folder
from trainer_engine.contract.errors import DiskFull
from trainer_engine.datasets.hashes import FileHashes

SCHEMA = 1
"""Goes up when code changes what an entry holds for the same inputs."""
LENGTH_BYTES = 8
SET_ASIDE = "set_aside"

log = logging.getLogger(__name__)


def address_of(kind: str, **made_from: Any) -> str:
    """sha256 of what an entry depends on, 64 hexadecimal digits."""
    document = {"kind": kind, "schema": SCHEMA, **made_from}
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class CacheStore:
    """A folder of entries. ``hashes`` remembers the content hashes of the files that entries are made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hashes = FileHashes(folder / "hashes.jsonl")

    def path(self, address: str) -> Path:
        return self.folder / address[:2] / f"{address}.safetensors"

    def holds(self, address: str) -> bool:
        """Whether the entry is there and as long as its header says; ``get`` looks at every byte."""
        try:
            with self.path(address).open("rb") as stream:
                header, start = _read_header(stream.read(LENGTH_BYTES), stream.read)
                size = os.fstat(stream.fileno()).st_size
        except (OSError, ValueError, struct.error):
            return False
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return size == start + max(ends, default=0)

    def get(self, address: str) -> dict[str, Tensor] | None:
        """The entry, or None where there is none. A damaged one is set aside, counts as missing, and is made again by whoever asked."""
        path = self.path(address)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            header, start = _read_header(content[:LENGTH_BYTES], lambda length: content[LENGTH_BYTES : LENGTH_BYTES + length])
            if header["__metadata__"]["sha256"] == hashlib.sha256(memoryview(content)[start:]).hexdigest():
                return load(content)
        except (ValueError, KeyError, TypeError, struct.error, SafetensorError):
            pass
        self._set_aside(path)
        return None

    def put(self, address: str, tensors: Mapping[str, Tensor]) -> None:
        """Write one entry; whole or not at all. Raises DiskFull."""
        self.put_all({address: tensors})

    def put_all(self, entries: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write several entries, each whole or not at all, with one sync of the folders. Raises DiskFull."""
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
                stream.write(_encode(tensors))
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return path.parent

    def _set_aside(self, path: Path) -> None:
        target = self.folder / SET_ASIDE / f"{path.stem}.{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(exist_ok=True)
        try:
            path.replace(target)
        except FileNotFoundError:  # another process was first
            return
        log.warning("The cache entry %s was damaged; it lies in %s and is made again.", path.stem, target)


def _encode(tensors: Mapping[str, Tensor]) -> bytes:
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    plain = save(contiguous)
    _, start = _read_header(plain[:LENGTH_BYTES], lambda length: plain[LENGTH_BYTES : LENGTH_BYTES + length])
    return save(contiguous, metadata={"sha256": hashlib.sha256(memoryview(plain)[start:]).hexdigest()})


def _read_header(length_field: bytes, read: Any) -> tuple[dict[str, Any], int]:
    """(header, offset of the data) of a safetensors file: 8 bytes of length, little endian, then JSON. Raises ValueError, struct.error."""
    (length,) = struct.unpack("<Q", length_field)
    if length > 100_000_000:
        raise ValueError("no safetensors header is that long")
    header = json.loads(read(length))
    if not isinstance(header, dict):
        raise ValueError("a safetensors header holds an object")
    return header, LENGTH_BYTES + length

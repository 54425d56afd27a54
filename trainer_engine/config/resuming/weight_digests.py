"""Identifies weights files by their content, quickly even for gigabytes. Standard library only.

A file of up to 32 MiB is hashed completely. The digest of a larger safetensors file covers its size, the name, type and shape of every
tensor, and the first, middle and last 4 KiB of every tensor's data. Training, merging and quantising change these blocks. A manual change
of a single number elsewhere in a large tensor is not detected.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from trainer_engine.contract.files import open_regular, sha256_of
from trainer_engine.contract.safetensors_header import METADATA, read_header

WHOLE_BYTES = 32 << 20
BLOCK_BYTES = 4096
BLOCKS = 256
"""Number of blocks hashed in a large file of another format, spread evenly over it."""


def weight_digest(path: Path) -> str:
    """Returns the digest as 64 hexadecimal digits, independent of the file's name and folder. Raises OSError."""
    status = path.stat()
    return _digest(str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _digest(path: str, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> str:
    """Computes the digest. It is cached as long as the file's size, times and inode are the same."""
    if size <= WHOLE_BYTES:
        return sha256_of(Path(path))
    digest = hashlib.sha256(f"{size} bytes".encode())
    with open_regular(path) as stream:
        for start, length in _blocks(stream, size, digest):
            stream.seek(start)
            digest.update(stream.read(length))
    return digest.hexdigest()


def _blocks(stream: BinaryIO, size: int, digest: hashlib._Hash) -> Iterator[tuple[int, int]]:
    """Yields (start, length) of the blocks to hash in file order, after adding the table of tensors to the digest."""
    try:
        table, data = _table(stream, size)
    except (ValueError, TypeError, KeyError, AttributeError):
        step = max(BLOCK_BYTES, size // BLOCKS)
        yield from ((start, BLOCK_BYTES) for start in range(0, size, step))
        return
    digest.update(json.dumps(table, sort_keys=True).encode())
    for begin, end in sorted(entry["data_offsets"] for entry in table.values()):
        middle, last = (begin + end) // 2, max(begin, end - BLOCK_BYTES)
        for start in sorted({begin, middle, last}):
            yield data + start, max(0, min(BLOCK_BYTES, end - start))


def _table(stream: BinaryIO, size: int) -> tuple[dict[str, dict[str, list[int]]], int]:
    """Returns (the table of tensors in a safetensors file, offset of their data). Raises ValueError, TypeError or KeyError if malformed."""
    header, data = read_header(stream.read)
    table = {name: entry for name, entry in header.items() if name != METADATA}
    for begin, end in (entry["data_offsets"] for entry in table.values()):
        if not (isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end <= size):
            raise ValueError("the header does not say where tensors lie")
    return table, data

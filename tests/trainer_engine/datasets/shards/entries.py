"""Entries of shards that follow from a number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path

from trainer_engine.datasets.shards.folder import ShardFolder
from trainer_engine.datasets.shards.writer import Entry, ShardWriter


def address(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def content(number: int) -> bytes:
    """Of another length for each entry, between 50 and 600 bytes."""
    return random.Random(number).randbytes(50 + number * 37 % 550)


def written(folder: Path, numbers: Iterable[int], limit: int = 1 << 20) -> None:
    writer = ShardWriter(folder, limit)
    writer.append(Entry(address(number), content(number)) for number in numbers)
    writer.close()


def is_read(folder: ShardFolder, number: int) -> bool:
    """Whether an entry is there; what is there must be what was written."""
    found = folder.read(address(number))
    assert found is None or found[1] == content(number), number
    return found is not None


def only(folder: Path, suffix: str) -> Path:
    (path,) = folder.glob(f"*{suffix}")
    return path

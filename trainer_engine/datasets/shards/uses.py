"""Which run last used which entries of a cache: lists of addresses, whose time of modification is the time of their last use.

A list is named after the SHA-256 of its content, so that a run that starts again writes nothing, and a damaged list is recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import open_regular, read_document

USES, SUFFIX = "uses", ".use"
ADDRESS_BYTES = 32
LONGEST_HEAD = 1 << 16
TOUCHED_SECONDS = 3600
"""A run that reads a cache renews the time of its list this often."""


class UseList(NamedTuple):
    """The entries that one or several runs read."""

    path: Path
    used: float
    """Seconds since 1970 when a run last used them."""
    facts: Mapping[str, Any]
    """What the runs were, for people: kind of the entries, family, model."""
    addresses: list[bytes]


def note_use(folder: Path, addresses: Iterable[str], facts: Mapping[str, Any]) -> Path:
    """Notes that a run uses these entries of the cache in ``folder``. Returns the list. Raises OSError."""
    ordered = sorted(set(addresses))
    content = json.dumps(facts, sort_keys=True).encode() + b"\n" + bytes.fromhex("".join(ordered))
    path = folder / USES / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}"
    try:
        os.utime(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


def use_heads(folder: Path) -> Iterator[tuple[float, Mapping[str, Any], int]]:
    """(time of the last use, facts, number of entries) of each list, without reading the addresses. The newest comes first."""
    found = []
    for path in (folder / USES).glob(f"*{SUFFIX}"):
        try:
            with open_regular(path) as stream:
                head = stream.readline(LONGEST_HEAD)
                status = os.fstat(stream.fileno())
            facts = read_document(head)
        except (OSError, ValueError):
            continue
        if isinstance(facts, dict):
            found.append((status.st_mtime, facts, (status.st_size - len(head)) // ADDRESS_BYTES))
    return iter(sorted(found, key=lambda one: -one[0]))


def use_lists(folder: Path) -> Iterator[UseList]:
    """The lists of a cache. Damaged ones are passed over: their entries count from when they were written."""
    for path in sorted((folder / USES).glob(f"*{SUFFIX}")):
        try:
            with open_regular(path) as stream:
                content, used = stream.read(), os.fstat(stream.fileno()).st_mtime
            head, _, packed = content.partition(b"\n")
            facts = read_document(head)
        except (OSError, ValueError):
            continue
        if hashlib.sha256(content).hexdigest() == path.stem and isinstance(facts, dict):
            yield UseList(path, used, facts, [packed[start : start + ADDRESS_BYTES] for start in range(0, len(packed), ADDRESS_BYTES)])

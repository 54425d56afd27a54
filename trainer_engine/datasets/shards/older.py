"""Entries that older versions wrote: one safetensors file each, ``<ab>/<address>.safetensors``. They are read, and never written."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from trainer_engine.contract.safetensors_header import METADATA, read_header

QUARANTINE = "set_aside"
"""Folder for damaged entries."""
SUFFIX = ".safetensors"
CONTENT, FIELDS = "sha256", "fields_sha256"
DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError)
"""Raised by functions that read a damaged header."""
SHELF, ADDRESS = 2, 64
"""Lengths of the names of a folder of entries and of an address."""
NAME = re.compile(rf"[0-9a-f]{{{ADDRESS}}}{re.escape(SUFFIX)}")
QUARANTINED = re.compile(rf"[0-9a-f]{{{ADDRESS}}}(\.[\w.]+)?")

log = logging.getLogger(__name__)


def entry_path(folder: Path, address: str) -> Path:
    return folder / address[:SHELF] / f"{address}{SUFFIX}"


def entries_of(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The files of all entries of a cache; none without a folder. A file of another name is no entry, and stays whatever is cleaned."""
    try:
        shelves = [shelf for shelf in os.scandir(folder) if len(shelf.name) == SHELF and shelf.is_dir(follow_symlinks=False)]
        for shelf in shelves:
            yield from (entry for entry in os.scandir(shelf) if NAME.fullmatch(entry.name) and entry.name.startswith(shelf.name))
    except OSError:
        return


def is_complete(path: Path) -> bool:
    """Whether an entry exists and is as long as its header says."""
    try:
        with path.open("rb") as stream:
            return end_of(stream.read) == os.fstat(stream.fileno()).st_size
    except (OSError, *DAMAGE):
        return False


def read(path: Path) -> bytes | None:
    """The safetensors of an entry; None if it is missing or damaged. A damaged file is quarantined."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if is_sound(content):
            return content
    except DAMAGE:
        pass
    quarantine(path)
    return None


def quarantine(path: Path) -> None:
    target = path.parents[1] / QUARANTINE / f"{path.stem}.{uuid.uuid4().hex[:8]}"
    target.parent.mkdir(exist_ok=True)
    try:
        path.replace(target)
    except FileNotFoundError:  # another process was first
        return
    log.warning("The cache entry %s was damaged; it was moved to %s and is computed again.", path.stem, target)


def is_sound(content: bytes) -> bool:
    """Whether content and fields are those that were written. The oldest entries have no digest of their fields.

    Raises one of ``DAMAGE`` if the header cannot be read.
    """
    header, start = read_header(BytesIO(content).read)
    metadata = header[METADATA]
    has_content = metadata[CONTENT] == hashlib.sha256(memoryview(content)[start:]).hexdigest()
    return bool(has_content and metadata.get(FIELDS) in (None, digest_of_fields(header)))


def end_of(read: Callable[[int], bytes]) -> int:
    """The length in bytes that the file has according to its header. Raises one of ``DAMAGE``."""
    header, start = read_header(read)
    return start + max((int(entry["data_offsets"][1]) for entry in _fields(header).values()), default=0)


def _fields(header: dict[str, Any]) -> dict[str, Any]:
    """Name, type, shape and place of each tensor."""
    return {name: entry for name, entry in header.items() if name != METADATA}


def digest_of_fields(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_fields(header), sort_keys=True).encode()).hexdigest()

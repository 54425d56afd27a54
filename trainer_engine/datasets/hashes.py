"""Content hashes of files, cached as long as their size and version are the same: on this machine, their modification time."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer_engine.contract.files import sha256_of
from trainer_engine.datasets.sources.base import Source, Version


class FileHashes:
    """Caches sha256 by path in an append-only file of JSON lines. It is thread-safe.

    Several processes may share the file: a line is written at once, and an incomplete line is ignored.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, Version, str]] = _read_index(index)

    def of(self, path: Path) -> str:
        """Returns the sha256 of a file as 64 hexadecimal digits. Raises OSError if it cannot be read."""
        name = str(path.absolute())
        named = _hash_in_hub_cache(name)
        if named:
            return named
        status = os.stat(name)  # noqa: PTH116
        return self._cached(name, status.st_size, status.st_mtime_ns, lambda: sha256_of(path))

    def of_entry(self, source: Source, name: str) -> str:
        """Returns the sha256 of a file of a source, as ``of`` does. Raises OSError if it cannot be read."""
        path = source.local_path(name)
        if path is not None:
            return self.of(Path(path))
        found = source.stat(name)
        return self._cached(source.location(name), found.size_bytes, found.version, lambda: source.sha256(name))

    def known(self, location: str, size: int, version: Version) -> str | None:
        """Returns the cached hash of a file with this size and version, or None. It neither reads nor writes a file."""
        known = self._known.get(location)
        return known[2] if known and known[:2] == (size, version) else None

    def reload(self) -> None:
        """Reads the hashes that other processes have added since."""
        with self._lock:
            self._known = _read_index(self.index)

    def _cached(self, key: str, size: int, version: Version, compute: Callable[[], str]) -> str:
        with self._lock:
            known = self.known(key, size, version)
        if known:
            return known
        digest = compute()
        self._remember(key, size, version, digest)
        return digest

    def _remember(self, key: str, size: int, version: Version, digest: str) -> None:
        line = json.dumps([key, size, version, digest], ensure_ascii=False) + "\n"
        with self._lock:
            self._known[key] = (size, version, digest)
            self.index.parent.mkdir(parents=True, exist_ok=True)
            with self.index.open("ab") as stream:
                stream.write(line.encode("utf-8", "surrogateescape"))


def _hash_in_hub_cache(path: str) -> str | None:
    """Returns the sha256 in the name of a large file in the Hugging Face cache, so that gigabytes need not be read.

    Files of models are links into its folder ``blobs``. Other paths are not followed, which would take longer than reading their size.
    """
    target = os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114
    folder, name = os.path.split(target)
    named = folder.endswith(f"{os.sep}blobs") and re.fullmatch(r"[0-9a-f]{64}", name)
    return name if named else None


def _read_index(index: Path) -> dict[str, tuple[int, Version, str]]:
    known: dict[str, tuple[int, Version, str]] = {}
    if not index.exists():
        return known
    lines = index.read_bytes().splitlines()  # of bytes: a path may hold U+2028, which ends no line here
    for row in _together(lines) or map(_alone, lines):
        try:
            key, size, version, digest = row
            known[str(key)] = (int(size), version if isinstance(version, int) else str(version), str(digest))
        except (ValueError, TypeError, OverflowError):
            continue  # an incomplete line, or one of another program
    return known


def _together(lines: list[bytes]) -> list[Any]:
    """Returns the documents of lines, in a third of the time that one after the other takes; none if a line is no document."""
    try:
        rows = json.loads(f"[{b','.join(lines).decode('utf-8', 'surrogateescape')}]")
    except (ValueError, RecursionError):
        return []
    return rows if len(rows) == len(lines) else []


def _alone(line: bytes) -> Any:
    """Returns the document of a line, or None if it is none."""
    try:
        return json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return None

"""Content hashes of files, cached as long as size and modification time are the same."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from trainer_engine.contract.files import read_document, sha256_of


class FileHashes:
    """Caches sha256 by path in an append-only file of JSON lines. It is thread-safe.

    Several processes may share the file: a line is written at once, and an incomplete line is ignored.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int, str]] = _read_index(index)

    def of(self, path: Path) -> str:
        """Returns the sha256 of a file as 64 hexadecimal digits. Raises OSError if it cannot be read."""
        named = _hash_in_hub_cache(path)
        if named:
            return named
        status = path.stat()
        key = str(path.absolute())
        with self._lock:
            known = self._known.get(key)
        if known and known[:2] == (status.st_size, status.st_mtime_ns):
            return known[2]
        digest = sha256_of(path)
        self._remember(key, status.st_size, status.st_mtime_ns, digest)
        return digest

    def known(self, path: str, size: int, mtime_ns: int) -> str | None:
        """Returns the cached hash of a file with this size and time, or None. It neither reads nor writes a file."""
        known = self._known.get(path)
        return known[2] if known and known[:2] == (size, mtime_ns) else None

    def _remember(self, key: str, size: int, mtime_ns: int, digest: str) -> None:
        line = json.dumps([key, size, mtime_ns, digest], ensure_ascii=False) + "\n"
        with self._lock:
            self._known[key] = (size, mtime_ns, digest)
            self.index.parent.mkdir(parents=True, exist_ok=True)
            with self.index.open("ab") as stream:
                stream.write(line.encode("utf-8", "surrogateescape"))


def _hash_in_hub_cache(path: Path) -> str | None:
    """Returns the sha256 in the name of a large file in the Hugging Face cache, so that gigabytes need not be read."""
    target = path.resolve()
    named = target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name)
    return target.name if named else None


def _read_index(index: Path) -> dict[str, tuple[int, int, str]]:
    known: dict[str, tuple[int, int, str]] = {}
    if not index.exists():
        return known
    for line in index.read_bytes().splitlines():  # of bytes: a path may hold U+2028, which ends no line here
        try:
            key, size, mtime_ns, digest = read_document(line.decode("utf-8", "surrogateescape"))
            known[str(key)] = (int(size), int(mtime_ns), str(digest))
        except (ValueError, TypeError, OverflowError):
            continue  # an incomplete line, or one of another program
    return known

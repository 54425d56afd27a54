"""Content hashes of files, remembered for as long as size and modification time stay the same."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from trainer_engine.contract.files import sha256_of


class FileHashes:
    """sha256 by path, kept in a file of JSON lines that is only ever appended to. Safe to use from several threads.

    Two processes may share the file: a line is written whole, and a line that was cut short is ignored.
    """

    def __init__(self, index: Path) -> None:
        self.index = index
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int, str]] = _read_index(index)

    def of(self, path: Path) -> str:
        """sha256 of the file's bytes, 64 hexadecimal digits. Raises OSError where the file cannot be read."""
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
        """What is remembered of a file that was seen at this size and time; nothing is read or written."""
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
    """The Hugging Face cache names large files by their sha256: no need to read gigabytes again."""
    target = path.resolve()
    named = target.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", target.name)
    return target.name if named else None


def _read_index(index: Path) -> dict[str, tuple[int, int, str]]:
    known: dict[str, tuple[int, int, str]] = {}
    if not index.exists():
        return known
    for line in index.read_bytes().splitlines():  # of bytes: a path may hold U+2028, which ends no line here
        try:
            key, size, mtime_ns, digest = json.loads(line.decode("utf-8", "surrogateescape"))
        except ValueError:
            continue
        known[str(key)] = (int(size), int(mtime_ns), str(digest))
    return known

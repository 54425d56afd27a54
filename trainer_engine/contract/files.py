"""Reads files and JSON that users name, safely: regular files only, up to a size limit, with every fault an exception.

A path in a configuration may lead to a pipe, a device or a file of many gigabytes. The exceptions name the reason and the place in the
text, and never repeat the contents of the file. Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

LONGEST_SHOWN = 80


class DuplicateKey(ValueError):
    """A JSON object has a key twice; all values but the last would be lost silently."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object from its members, as ``object_pairs_hook``. Raises DuplicateKey, which names the key and never a value."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise DuplicateKey(f"the key {twice[:LONGEST_SHOWN]!r} occurs twice in one object")
    return found


def read_document(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] = unique_keys) -> Any:
    """Parses JSON. Raises ValueError, also for nesting deeper than Python's stack and for duplicate keys.

    ``pairs`` builds objects from their members, like ``object_pairs_hook`` of the standard library.
    """
    try:
        return json.loads(text, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


LARGEST_BYTES = 4 << 20
"""Size limit of files that people write: configurations, datasets, prompt libraries."""
LARGEST_LIST_BYTES = 16 << 20
"""Size limit of files that programs write: shard indexes, manifests and training states."""


class UnreadableFile(OSError):
    """A path does not lead to a readable small file. The message says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        return str(self.strerror)


class FileTooLarge(UnreadableFile):
    """The file exceeds its size limit."""

    def __init__(self, largest: int) -> None:
        size = f"{largest >> 20} MiB" if largest >= 1 << 20 else f"{largest >> 10} KiB"
        super().__init__(f"it is larger than {size}")


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError, and UnreadableFile for anything but a regular file.

    It never waits for the other end of a pipe, and never opens a device.
    """
    _refuse_others(os.stat(path))  # noqa: PTH116 - checked before opening, since opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    stream = open(descriptor, "rb")  # noqa: PTH123, SIM115
    try:
        _refuse_others(os.fstat(descriptor))
    except UnreadableFile:
        stream.close()
        raise
    return stream


def _refuse_others(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFile("it is not a file")


def read_small(path: str | os.PathLike[str], largest: int = LARGEST_BYTES) -> bytes:
    """Reads a regular file. Raises OSError: FileTooLarge above ``largest`` bytes, UnreadableFile for anything but a regular file."""
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size > largest:
            raise FileTooLarge(largest)
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise FileTooLarge(largest)
    return content


def read_small_text(path: str | os.PathLike[str], largest: int = LARGEST_BYTES) -> str:
    """Reads UTF-8 text, with or without a byte order mark. Raises OSError."""
    try:
        return read_small(path, largest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"byte {error.start} is not UTF-8") from None


def read_small_json(path: str | os.PathLike[str], largest: int = LARGEST_BYTES) -> Any:
    """Reads a JSON file. Raises OSError, also for invalid JSON."""
    try:
        return read_document(read_small_text(path, largest))
    except json.JSONDecodeError as error:
        raise UnreadableFile(f"not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except DuplicateKey as error:
        raise UnreadableFile(str(error)) from None
    except ValueError:
        raise UnreadableFile("its JSON is nested too deep, or holds a number that is too long") from None


def is_file(path: Path) -> bool:
    """False also where the file system refuses to say, or can hold no such name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """False also where the file system refuses to say, or can hold no such name."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """False also where the file system refuses to say, or can hold no such name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a regular file in hexadecimal. Raises OSError."""
    with open_regular(path) as stream:
        return sha256_of_stream(stream)


def sha256_of_stream(stream: BinaryIO) -> str:
    """Returns the SHA-256 of the rest of a stream in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()

"""Which run last used which entries of a cache: lists of addresses, whose time of modification is the time of their last use.

A list is named after the SHA-256 of its content, so that a run that starts again writes nothing, and a damaged list is recognised.
A run holds a lock on its list as long as it lives: its entries are in use, however long ago it last read one from the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
    is_held: bool = False
    """Whether a run that reads them lives."""


class HeldUse:
    """A list that this process holds until it calls ``let_go``, drops the object or ends."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.inode = os.fstat(descriptor).st_ino
        self._close = weakref.finalize(self, _let_go, descriptor)

    def let_go(self) -> None:
        """The entries count as used until now."""
        self._close()


def _let_go(descriptor: int) -> None:
    with suppress(OSError):
        os.utime(descriptor)
    os.close(descriptor)


def hold_use(folder: Path, addresses: Iterable[str], facts: Mapping[str, Any]) -> HeldUse:
    """``note_use``, and nothing removes the entries as long as this process holds the list. Raises OSError."""
    ordered = sorted(set(addresses))
    while True:
        path = note_use(folder, ordered, facts)
        with suppress(FileNotFoundError):  # it was removed in this moment
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with suppress(OSError):  # a file system without locks: the time of the list is all that there is
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _lies_at(path, descriptor):
                return HeldUse(path, descriptor)
            os.close(descriptor)


def is_in_use(path: Path) -> bool:
    """Whether a run holds a list. Raises OSError."""
    descriptor = _opened(path)
    try:
        return not _is_free(descriptor)
    finally:
        os.close(descriptor)


def remove_unheld(path: Path) -> bool:
    """Removes a list, unless a run holds it."""
    try:
        descriptor = _opened(path)
    except OSError:
        return False
    try:
        if not _is_free(descriptor) or not _lies_at(path, descriptor):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


def _lies_at(path: Path, descriptor: int) -> bool:
    """Whether an open list still lies at its path: another one may be there by now. One that is locked stays."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


def _opened(path: Path) -> int:
    """A descriptor that an exclusive lock is asked for with: NFS refuses that for one which only reads. Raises OSError."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | flags)
    except PermissionError:  # a list of another account
        return os.open(path, os.O_RDONLY | flags)


def _is_free(descriptor: int) -> bool:
    """Whether no run holds an open list; it is locked for this process then, until it is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def note_use(folder: Path, addresses: Iterable[str], facts: Mapping[str, Any]) -> Path:
    """Notes that a run uses these entries of the cache in ``folder``. Returns the list. Raises OSError."""
    ordered = sorted(set(addresses))
    content = json.dumps(facts, sort_keys=True).encode() + b"\n" + bytes.fromhex("".join(ordered))
    path = folder / USES / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}"
    try:
        os.utime(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_new(path, content)
    return path


def _write_new(path: Path, content: bytes) -> None:
    """Writes a list that is not there, and never in the place of one that another run has just written and holds."""
    staging = path.with_name(f".{secrets.token_hex(8)}.tmp")
    write_atomically(staging, content)
    try:
        os.link(staging, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


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
            is_held = is_in_use(path)
            with open_regular(path) as stream:
                content, used = stream.read(), os.fstat(stream.fileno()).st_mtime
            head, _, packed = content.partition(b"\n")
            facts = read_document(head)
        except (OSError, ValueError):
            continue
        if hashlib.sha256(content).hexdigest() == path.stem and isinstance(facts, dict):
            addresses = [packed[start : start + ADDRESS_BYTES] for start in range(0, len(packed), ADDRESS_BYTES)]
            yield UseList(path, used, facts, addresses, is_held)

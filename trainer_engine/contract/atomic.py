"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

PRIVATE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700
"""Of what the server keeps for itself, below ``state/``."""

FULL = (errno.ENOSPC, errno.EDQUOT)
RUST_SIGNS = ("StorageFull", "QuotaExceeded", *(f"{word} {number}" for number in FULL for word in ("code:", "os error")))


def means_full(error: BaseException) -> bool:
    """Whether something could not be written because the disk, or somebody's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in FULL
    # safetensors writes in Rust and passes the system's error on as text, shown in one way or the other.
    return any(sign in str(error) for sign in RUST_SIGNS)


def why_not_written(folder: Path, error: OSError) -> str:
    """One sentence about a folder that does not take a file, without the file's name."""
    if means_full(error):
        return f"The disk of {folder} is full."
    if error.errno == errno.EROFS:
        return f"The disk of {folder} can only be read."
    return f"{folder} cannot be written: {error.strerror or error}."


def write_atomically(path: Path, content: bytes, *, mode: int | None = None, is_new: bool = False) -> None:
    """Write beside, fsync, rename, fsync the folder: after a power cut the old file or the new one is there, never half of one.

    Without ``mode`` a file that is replaced keeps its mode and, where the system allows it, its owner; a new one gets what the umask
    says, and is no more open than its folder. ``is_new``: raises FileExistsError where there is a file already.
    Raises OSError as the file system does; nothing is left beside in that case.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            _set_mode(stream.fileno(), path, mode)
            os.fsync(stream.fileno())
        _take_place(temporary, path, is_new=is_new)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _set_mode(descriptor: int, path: Path, mode: int | None) -> None:
    made = os.fstat(descriptor)
    try:
        old = path.lstat()
    except FileNotFoundError:
        old = None
    if mode is not None or old is None or not stat.S_ISREG(old.st_mode):
        os.fchmod(descriptor, made.st_mode & path.parent.stat().st_mode & 0o777 if mode is None else mode)
        return
    if (old.st_uid, old.st_gid) != (made.st_uid, made.st_gid):
        with suppress(PermissionError):
            os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


def _take_place(temporary: Path, path: Path, *, is_new: bool) -> None:
    if not is_new:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)  # unlike a rename, this never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        temporary.replace(path)
        return
    temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Writes files atomically: after a crash a file is complete or absent."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

PRIVATE_MODE = 0o600
PRIVATE_FOLDER_MODE = 0o700
"""Modes of the server's own files and folders, in ``state/``."""

FULL = (errno.ENOSPC, errno.EDQUOT)
RUST_SIGNS = ("StorageFull", "QuotaExceeded", *(f"{word} {number}" for number in FULL for word in ("code:", "os error")))


def means_full(error: BaseException) -> bool:
    """Whether an error means that the disk or a quota is full."""
    if isinstance(error, OSError):
        return error.errno in FULL
    # safetensors writes in Rust and only passes on the text of the system's error, in one of these forms.
    return any(sign in str(error) for sign in RUST_SIGNS)


def why_not_written(folder: Path, error: OSError) -> str:
    """Returns a sentence that says why a folder cannot be written to, without the name of the file."""
    if means_full(error):
        return f"The disk of {folder} is full."
    if error.errno == errno.EROFS:
        return f"The disk of {folder} is read-only."
    return f"{folder} cannot be written: {error.strerror or error}."


def write_atomically(path: Path, content: bytes | BinaryIO, *, mode: int | None = None, is_new: bool = False) -> None:
    """Writes bytes, or what an open file holds from its position on: after a power cut the old or the new contents are there, never a part.

    It writes a temporary file in the same folder, calls fsync, renames it, and calls fsync on the folder. Without ``mode`` an existing file
    keeps its mode and, if possible, its owner; a new one gets the mode of the umask, limited by that of its folder.
    With ``is_new`` it raises FileExistsError if the file exists. Raises OSError; the temporary file is then removed.
    """
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            if isinstance(content, bytes):
                stream.write(content)
            else:
                shutil.copyfileobj(content, stream, 1 << 20)
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
        os.link(temporary, path)  # unlike a rename, this never replaces a file
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        temporary.replace(path)
        return
    temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Calls fsync on a folder, so that renames and removals in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

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


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write beside, fsync, rename, fsync the folder: after a power cut the old file or the new one is there, never half of one.

    Raises OSError as the file system does; nothing is left beside in that case.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

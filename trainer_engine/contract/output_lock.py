"""Locks an output folder, so that only one run at a time writes into it. Standard library only.

The lock is ``flock`` on a file in the folder. The system releases it when the process ends in any way, so nothing needs cleaning up after a
crash. Linux passes it on to NFS and SMB servers, so it works between machines too. A file system without locks is used without one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer_engine.contract.atomic import FULL
from trainer_engine.contract.errors import EngineError, ExitCode
from trainer_engine.contract.events import utc_now
from trainer_engine.contract.files import read_document

LOCK_FILE = ".simpletuner.lock"
"""Remains in the folder and names the holder of the lock. Only its lock counts, not its existence."""
LONGEST_BYTES = 4096
PATIENCE_SECONDS = 2.0
"""How long to wait for a run that is just ending, or a process that only reads the holder."""
LOOK_AGAIN_SECONDS = 0.05
HELD = (errno.EWOULDBLOCK, errno.EACCES)
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EROFS, *FULL)


class OutputInUse(EngineError):
    """Another run writes into the output folder. The message names it."""

    code = "output_in_use"
    exit_code = ExitCode.CONFIGURATION


@dataclass(frozen=True)
class Holder:
    """The run that holds the lock. Unknown fields are empty."""

    job_id: str = ""
    environment: str = ""
    pid: int = 0
    host: str = ""
    since: str = ""

    @classmethod
    def here(cls, job_id: str, environment: str) -> Holder:
        return cls(job_id, environment, os.getpid(), socket.gethostname(), utc_now())

    def refusal(self, output_dir: Path) -> OutputInUse:
        of = f" of {self.environment}" if self.environment else ""
        process = f" (process {self.pid} on {self.host}, since {self.since})" if self.pid else ""
        message = f"output_dir {output_dir} is in use by the run {self.job_id or 'of another program'}{of}{process}."
        return OutputInUse(message, hint="wait until that run has ended, or stop it, or choose another output_dir")


@contextmanager
def claimed(output_dir: Path, holder: Holder) -> Iterator[bool]:
    """Holds the lock of the folder during the block. Yields False if the file system has no locks.

    Raises OutputInUse, and OSError if the folder cannot be written to.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _open(output_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        yield False
        return
    try:
        has_lock = _lock(descriptor, output_dir)
        if has_lock:
            with suppress(OSError):  # on a full disk the lock works without the name of its holder
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
        yield has_lock
    finally:
        os.close(descriptor)


def holder_of(output_dir: Path) -> Holder | None:
    """Returns the holder of a folder's lock, or None if it is free or unknown. Writes nothing."""
    try:
        descriptor = _open(output_dir / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _read(descriptor) if error.errno in HELD else None
    finally:
        os.close(descriptor)
    return None


def _open(path: Path, flags: int) -> int:
    """Opens a regular file without following a symbolic link. Raises OSError."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EEXIST, "it is not a file", str(path))
    return descriptor


def _lock(descriptor: int, output_dir: Path) -> bool:
    """Takes the lock. Returns False if the file system has no locks. Raises OutputInUse if another process keeps it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return False
            if error.errno not in HELD:
                raise
            if time.monotonic() >= deadline:
                raise _read(descriptor).refusal(output_dir) from error
        time.sleep(LOOK_AGAIN_SECONDS)


def _read(descriptor: int) -> Holder:
    try:
        document = read_document(os.pread(descriptor, LONGEST_BYTES, 0))
        fields = {name: document[name] for name in ("job_id", "environment", "host", "since")}
        return Holder(pid=int(document["pid"]), **{name: str(value)[:200] for name, value in fields.items()})
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return Holder()

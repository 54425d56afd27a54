"""Writes the last events and ``exit.json`` of a run even on a full disk. Standard library and contract only: torch may not be loaded."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from trainer_engine.contract.run import RESERVED_BYTES, ExitReport, RunFolder
from trainer_engine.runtime.events import Journal

if TYPE_CHECKING:
    from typing_extensions import Buffer  # of the standard library from Python 3.12 on

REPORT_BYTES = 1 << 14
"""Size of the part that is kept for ``exit.json``."""


class Reserve:
    """A file of allocated blocks in the run folder. At the end of the run it becomes space for the journal, and ``exit.json``."""

    def __init__(self, folder: RunFolder) -> None:
        """Allocate the file; on a disk that is already full the run has no reserve."""
        self.path = folder.reserve
        try:
            with self.path.open("wb") as stream:
                stream.write(bytes(RESERVED_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            self.close()

    def release(self) -> None:
        """Free all but the part for ``exit.json``. Raises OSError."""
        os.truncate(self.path, REPORT_BYTES)

    def become(self, report: bytes, folder: RunFolder) -> None:
        """Turn the reserve into ``exit.json``, which needs no new disk blocks. Raises OSError."""
        with self.path.open("r+b") as stream:
            stream.write(report[:REPORT_BYTES])
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())
        self.path.replace(folder.exit_file)

    def close(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def leave_journal(journal: Journal, reserve: Reserve) -> None:
    """Write the events that the journal still holds in memory, into the reserve's space if needed. A failure is printed to the log."""
    try:
        if journal.catch_up() is not None:
            reserve.release()
        trouble = journal.catch_up()
        if trouble is not None:
            raise trouble
        journal.sync()
    except OSError as error:
        print(f"The last events of the run could not be written to the journal: {error}", file=sys.stderr)


def leave_report(folder: RunFolder, report: ExitReport, reserve: Reserve | None = None) -> None:
    """Write ``exit.json``, into the reserve if needed. If that fails too, only the exit code of the process remains."""
    try:
        try:
            report.write(folder)
        except OSError:
            if reserve is None or not reserve.path.exists():
                raise
            reserve.become(report.as_bytes(), folder)
    except OSError as error:
        print(f"exit.json could not be written to the run folder: {error}", file=sys.stderr)


class _PatientFile(io.FileIO):
    """Drops output that cannot be written, instead of raising OSError."""

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def patient_stream(stream: TextIO) -> TextIO:
    """The same stream, except that a line which cannot be written to a full disk is dropped instead of raising."""
    try:
        raw = _PatientFile(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):  # closed, or not a stream of the operating system
        return stream
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True)

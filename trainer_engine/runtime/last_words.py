"""How a run says its last words where the disk takes no more. Standard library and contract only: it works before torch is loaded."""

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
"""The part that is kept until ``exit.json`` is written."""


class Reserve:
    """A file of real blocks in the run's folder, made at the start: at the end it becomes space for the journal, and ``exit.json``."""

    def __init__(self, folder: RunFolder) -> None:
        """A disk that is too full for it leaves the run without one."""
        self.path = folder.reserve
        try:
            with self.path.open("wb") as stream:
                stream.write(bytes(RESERVED_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            self.close()

    def release(self) -> None:
        """Give up all but what ``exit.json`` takes. Raises OSError."""
        os.truncate(self.path, REPORT_BYTES)

    def become(self, report: bytes, folder: RunFolder) -> None:
        """Turn into ``exit.json``: blocks and file are there already, so nothing new is asked of the disk. Raises OSError."""
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
    """Write what the journal still holds in memory, into the reserve's space if need be; what cannot be written is said in the log."""
    try:
        if journal.catch_up() is not None:
            reserve.release()
        trouble = journal.catch_up()
        if trouble is not None:
            raise trouble
        journal.sync()
    except OSError as error:
        print(f"The journal does not take the last events of the run: {error}", file=sys.stderr)


def leave_report(folder: RunFolder, report: ExitReport, reserve: Reserve | None = None) -> None:
    """Write ``exit.json``. Where no way is left to write it, the process's exit code is what remains."""
    try:
        try:
            report.write(folder)
        except OSError:
            if reserve is None or not reserve.path.exists():
                raise
            reserve.become(report.as_bytes(), folder)
    except OSError as error:
        print(f"The run folder does not take the report of how the run ended: {error}", file=sys.stderr)


class _PatientFile(io.FileIO):
    """Loses what the disk does not take, instead of raising."""

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def patient_stream(stream: TextIO) -> TextIO:
    """The same stream, for a process whose output goes to a disk that may fill up: a line that is lost ends nothing."""
    try:
        raw = _PatientFile(stream.fileno(), "w", closefd=False)
    except (OSError, ValueError, AttributeError):  # closed, or no stream of the system's
        return stream
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True)

"""Runs a module in a process of its own with limits on processor time, memory, wall time and the number of such processes.

It is for work on files of users: a table may be written to fill the memory, a video to keep a decoder busy or to crash it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass

MEMORY_EXIT = 3
"""Exit status of a process that ran out of its memory."""
WITHOUT_COLLECTOR = "import gc, runpy, sys; gc.disable(); runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
"""Runs a module. The process is short: a full garbage collection would walk through every module and every sample, and free nothing."""
LAST_SECONDS = 5
"""Between the signal that says that the processor time is over and the end of a process that ignores it."""
SLOTS = threading.BoundedSemaphore(2)
"""Limits how many of these processes a server runs at the same time."""


class ProcessFailed(Exception):
    """The process gave no answer. The message says why, as the end of a sentence; ``hint`` what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Limits:
    """What one process may take."""

    cpu_seconds: int = 300
    """Processor time of all its threads: that of some million images."""
    memory_bytes: int = 8 << 30
    wall_seconds: float = 600.0
    waiting_seconds: float = 60.0
    """How long a request waits until one of the other processes ends."""


LIMITS = Limits()


def answer_of(module: str, request: bytes, limits: Limits = LIMITS, slots: threading.Semaphore = SLOTS) -> bytes:
    """Returns what ``python -m module`` writes for a request. The module calls ``apply_limits`` first. Raises ProcessFailed."""
    if not slots.acquire(timeout=limits.waiting_seconds):
        raise ProcessFailed("had no turn while other datasets were examined", "try again in a minute")
    try:
        return _run(module, request, limits)
    finally:
        slots.release()


def _run(module: str, request: bytes, limits: Limits) -> bytes:
    numbers = [str(limits.cpu_seconds), str(limits.memory_bytes), str(int(limits.wall_seconds) + LAST_SECONDS)]
    command = [sys.executable, "-c", WITHOUT_COLLECTOR, module, *numbers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            output, _ = process.communicate(request, timeout=limits.wall_seconds)
        except subprocess.TimeoutExpired:
            hint = "a server or a disk may not answer; smaller datasets are examined sooner"
            raise ProcessFailed(f"took longer than {limits.wall_seconds:.0f} s", hint) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise _failure(process.returncode, limits)
    return output


def _failure(status: int, limits: Limits) -> ProcessFailed:
    if status == MEMORY_EXIT:
        hint = "split the dataset, or its table, into smaller ones"
        return ProcessFailed(f"needed more than {limits.memory_bytes / (1 << 30):.1f} GiB of memory", hint)
    if status == -signal.SIGXCPU:
        return ProcessFailed(f"took more than {limits.cpu_seconds} s of processor time", "split the dataset into smaller ones")
    if status < 0:
        return ProcessFailed(
            f"was ended by the signal {_name(-status)}", "one of the files may be broken; the server's output may say more"
        )
    return ProcessFailed(f"ended with the status {status}", "the server's output says more")


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else str(number)


def apply_limits(arguments: list[str]) -> None:
    """Limits this process to the processor seconds, bytes of memory and wall seconds of a command line.

    The memory is that of data (``RLIMIT_DATA``): address space that a library reserves and never uses does not count. The alarm ends the
    process even if the server that waits for it is gone.
    """
    cpu_seconds, memory_bytes, wall_seconds = map(int, arguments)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + LAST_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the system has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    signal.alarm(wall_seconds)

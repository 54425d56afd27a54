"""Supervises one hook, so that no process of it is left behind: ``python -I supervisor.py SECONDS BYTES PREFIX OUTLIVES -- PROGRAM ...``.

This small process stands between the engine and the hook. It copies the hook's output to its own output, the run's log: each line with a
prefix, and at most BYTES bytes. It ends the hook's process group after SECONDS. Then it writes how the hook ended to its standard error,
as one line of JSON. Its standard input is a pipe that the engine holds. If a byte arrives there, or if the engine exits, the supervisor
ends the hook; with OUTLIVES it drops the hook's output instead and lets it run.

It uses the standard library only and no module of the project, because it runs isolated, in the environment of the hook.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

LOOK_SECONDS = 0.05
GRACE_SECONDS = 3.0
"""Between SIGTERM and SIGKILL."""
LONGEST_LINE = 4096
BLOCK_BYTES = 65536
LIFELINE, ENDED = 0, 2
"""File descriptors: the pipe from the engine, and the one to it."""


class Log:
    """Writes complete lines with a prefix to standard output, up to a number of bytes."""

    def __init__(self, prefix: str, limit: int) -> None:
        self._prefix = f"[{prefix}] ".encode()
        self._left = limit
        self._line = b""

    def take(self, chunk: bytes) -> None:
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            self._write(line)
        while len(self._line) >= LONGEST_LINE:
            self._write(self._line[:LONGEST_LINE])
            self._line = self._line[LONGEST_LINE:]

    def finish(self) -> None:
        if self._line:
            self._write(self._line)
        self._line = b""

    def drop(self) -> None:
        """Close the run's log and discard all further output."""
        self.finish()
        self._left = 0
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)

    def _write(self, line: bytes) -> None:
        if self._left <= 0:
            return
        self._left -= len(line) + 1
        more = self._prefix + b"(the rest of the output is not kept)\n" if self._left <= 0 else b""
        try:
            os.write(1, self._prefix + line + b"\n" + more)
        except OSError:
            self._left = 0  # a full disk takes no log; that is no reason to end the hook


@dataclass
class Supervisor:
    """Runs one hook from its start to its end."""

    command: list[str]
    seconds: float
    outlives: bool
    log: Log

    def run(self) -> dict[str, object]:
        """How it ended: ``exited`` with ``code`` (negative: the signal), ``timed_out``, ``cut_off``, or ``not_started`` with ``error``."""
        began = time.monotonic()
        try:
            child = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return {"ended": "not_started", "error": error.strerror or str(error), "code": None, "seconds": 0.0}
        assert child.stdout is not None
        output = child.stdout.fileno()
        os.set_blocking(output, False)
        ended = self._watch(child, output, began + self.seconds)
        if ended != "exited":
            self._end(child, output)
        _signal_group(child.pid, signal.SIGKILL)  # processes that the hook left running
        code = child.wait()
        self._copy(output)
        self.log.finish()
        return {"ended": ended, "error": "", "code": code, "seconds": round(time.monotonic() - began, 3)}

    def _watch(self, child: subprocess.Popen[bytes], output: int, deadline: float) -> str:
        watched = [LIFELINE, output]
        while child.poll() is None:
            if time.monotonic() >= deadline:
                return "timed_out"
            ready, _, _ = select.select(watched, [], [], LOOK_SECONDS)
            if output in ready and not self._copy(output):
                watched.remove(output)
            if LIFELINE in ready:
                if not self.outlives:
                    return "cut_off"
                watched.remove(LIFELINE)
                self.log.drop()
        return "exited"

    def _copy(self, output: int) -> bool:
        """Copy the output that is available; returns whether more can come."""
        while True:
            try:
                chunk = os.read(output, BLOCK_BYTES)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.log.take(chunk)
            if len(chunk) < BLOCK_BYTES:
                return True

    def _end(self, child: subprocess.Popen[bytes], output: int) -> None:
        _signal_group(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while child.poll() is None and time.monotonic() < deadline:
            self._copy(output)
            time.sleep(LOOK_SECONDS)


def _signal_group(leader: int, number: signal.Signals) -> None:
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass  # nothing of it is left; macOS says so of a group of zombies with the second


def main(arguments: list[str]) -> int:
    seconds, limit, prefix, outlives, _, *command = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # The engine decides, through the pipe. NOTE: not SIG_IGN, which the hook would inherit.
        signal.signal(number, lambda number, frame: None)
    result = Supervisor(command, float(seconds), outlives == "1", Log(prefix, int(limit))).run()
    try:
        os.write(ENDED, json.dumps(result).encode() + b"\n")
    except OSError:
        pass  # the engine is gone
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One program of a run, as the engine's main thread holds it. Nothing here waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SUPERVISOR = Path(__file__).with_name("supervisor.py")
MARGIN_SECONDS = 15.0
"""Beyond its time limit, for a warden that cannot end its program: one that waits for a dead disk takes no signal."""
MOST_OUTPUT_BYTES = 256 * 1024
"""Of one program, in the run's log."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    ended: str
    """``exited``, ``timed_out``, ``cut_off`` (the run ended it) or ``not_started``."""
    code: int | None
    """Its exit code; negative for the signal that ended it, None where it never started."""
    error: str
    seconds: float

    @property
    def is_well(self) -> bool:
        return self.ended == "exited" and self.code == 0


class RunningScript:
    """A program under its warden."""

    def __init__(
        self, command: Sequence[str], *, prefix: str, seconds: float, environment: Mapping[str, str], folder: Path, outlives: bool = False
    ) -> None:
        """Start it in ``folder``, with nothing but ``environment``. Raises OSError where not even the warden starts."""
        self.prefix = prefix
        self.deadline = time.monotonic() + seconds
        settings = [str(seconds), str(MOST_OUTPUT_BYTES), prefix, "1" if outlives else "0"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SUPERVISOR), *settings, "--", *command],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=dict(environment),
            start_new_session=True,
        )
        self._outcome: Outcome | None = None

    @property
    def pid(self) -> int:
        """Of the warden."""
        return self._process.pid

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""
        if self._outcome is None and self._process.poll() is not None:
            self._outcome = self._read_outcome()
        if self._outcome is None and time.monotonic() > self.deadline + MARGIN_SECONDS:
            self._process.kill()
            self._outcome = Outcome("timed_out", None, "", time.monotonic() - self.deadline)
            self._close()
        return self._outcome

    def _read_outcome(self) -> Outcome:
        assert self._process.stderr is not None
        told = os.read(self._process.stderr.fileno(), 65536)
        self._close()
        try:
            found = json.loads(told)
            return Outcome(found["ended"], found["code"], found["error"], found["seconds"])
        except (ValueError, KeyError, TypeError):
            last = told.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return Outcome("not_started", None, f"what should look after it failed: {last or self._process.returncode}", 0.0)

    def let_go(self) -> None:
        """End it, or leave it to itself where it may outlive the run. Its outcome follows within some seconds."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                # A byte besides the end of the pipe: a process that was forked in between may hold the other end open.
                self._process.stdin.write(b"!")
                self._process.stdin.close()
            except OSError:
                pass  # it has just ended

    def _close(self) -> None:
        self.let_go()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def abandon(self) -> None:
        """Let go of it for good: nobody asks how it ended."""
        self._close()

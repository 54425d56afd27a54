"""One running hook, as the engine's main thread sees it. No method blocks."""

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
"""How long after its time limit a hook is given up. A supervisor that waits for a failed disk reacts to no signal."""
MOST_OUTPUT_BYTES = 256 * 1024
"""The most output that one hook may write to the run's log."""


@dataclass(frozen=True)
class HookOutcome:
    """How a hook ended."""

    ended: str
    """``exited``, ``timed_out``, ``cut_off`` (the run ended it) or ``not_started``."""
    code: int | None
    """Its exit code, negative if a signal ended it; None if it never started."""
    error: str
    seconds: float

    @property
    def succeeded(self) -> bool:
        return self.ended == "exited" and self.code == 0


class RunningHook:
    """A hook and its supervisor process."""

    def __init__(
        self, command: Sequence[str], *, prefix: str, seconds: float, environment: Mapping[str, str], folder: Path, outlives: bool = False
    ) -> None:
        """Start ``command`` in ``folder`` with exactly ``environment``.

        ``prefix`` marks its lines in the run's log, ``seconds`` is its time limit, ``outlives`` lets it run longer than the engine.
        Raises OSError if the supervisor cannot be started.
        """
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
        self._outcome: HookOutcome | None = None

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._process.pid

    def poll(self) -> HookOutcome | None:
        """How the hook ended; None while it runs."""
        if self._outcome is None and self._process.poll() is not None:
            self._outcome = self._read_outcome()
        if self._outcome is None and time.monotonic() > self.deadline + MARGIN_SECONDS:
            self._process.kill()
            self._outcome = HookOutcome("timed_out", None, "", time.monotonic() - self.deadline)
            self._close()
        return self._outcome

    def _read_outcome(self) -> HookOutcome:
        assert self._process.stderr is not None
        report = os.read(self._process.stderr.fileno(), 65536)
        self._close()
        try:
            found = json.loads(report)
            return HookOutcome(found["ended"], found["code"], found["error"], found["seconds"])
        except (ValueError, KeyError, TypeError):
            last_line = report.decode("utf-8", "replace").strip().rpartition("\n")[2]
            return HookOutcome("not_started", None, f"its supervisor failed: {last_line or self._process.returncode}", 0.0)

    def let_go(self) -> None:
        """End the hook, or detach it if it may outlive the run. ``poll`` returns its outcome within some seconds."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            try:
                # A byte as well as the end of the pipe: a process that was forked in between may hold the other end open.
                self._process.stdin.write(b"!")
                self._process.stdin.close()
            except OSError:
                pass  # it has just ended

    def _close(self) -> None:
        self.let_go()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def abandon(self) -> None:
        """End or detach the hook without asking for its outcome."""
        self._close()

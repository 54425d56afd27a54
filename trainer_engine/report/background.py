"""Draws the report of a run during training, seldom enough not to slow it down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trainer_engine.contract.events import ErrorEvent, Severity
from trainer_engine.contract.run import PICTURE_SECONDS, RunFolder
from trainer_engine.runtime.environment import helper_environment
from trainer_engine.runtime.events import EventSink

REST_FOR_WORK = 60.0
"""Seconds of pause for each second of CPU time that the last report took."""
SHORTEST_REST_SECONDS = 5.0
LONGEST_REST_SECONDS = PICTURE_SECONDS
"""Without a new image or checkpoint, the report is drawn again after this time, because the curves have grown."""
LAST_SECONDS = 20.0
"""How long the end of a run waits for its last report. A report that takes longer is still completed."""
LOOK_AGAIN_SECONDS = 0.02
ASKED_TO_END = (-signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a renderer that was ended together with the process group of the run; they are no failure."""
MODULE = "trainer_engine.report"


class BackgroundRenderer:
    """Runs one renderer process at a time, in the run's process group. A failure is one warning; nothing is drawn after it."""

    def __init__(self, folder: RunFolder, sink: EventSink) -> None:
        self.folder = folder
        self._sink = sink
        self._process: subprocess.Popen[bytes] | None = None
        self._has_begun = False
        self._has_news = False
        self._has_failed = False
        self._rest_until = 0.0
        self._next_without_news = 0.0

    def begin(self) -> None:
        """Start drawing; call it when training begins."""
        self._has_begun = True
        self._next_without_news = time.monotonic() + LONGEST_REST_SECONDS

    def note_news(self) -> None:
        """Draw the report soon, because there is a new image or checkpoint."""
        self._has_news = True

    def look(self) -> None:
        """Start a renderer if a report is due. Call it between two steps; it takes microseconds."""
        now = time.monotonic()
        if now < self._rest_until or self._has_failed:
            return
        if self._process is not None:
            self._reap()
        elif self._has_news or now >= self._next_without_news:
            self._start()

    def finish(self) -> None:
        """Draw the run as it ended, also after an error, and wait up to ``LAST_SECONDS``."""
        if not self._has_begun or self._has_failed:
            return
        deadline = time.monotonic() + LAST_SECONDS
        self._wait(deadline)
        if self._process is None and not self._has_failed:
            self._start("--nice", "0")  # training has ended, and the run waits for the report
            self._wait(deadline)

    def _start(self, *options: str) -> None:
        self._has_news = False
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, *options, str(self.folder.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=helper_environment(),
            )
        except OSError as error:
            self._fail(str(error))

    def _wait(self, deadline: float) -> None:
        while self._process is not None and time.monotonic() < deadline:
            self._reap()
            if self._process is not None:
                time.sleep(LOOK_AGAIN_SECONDS)

    def _reap(self) -> None:
        """Collect the process if it has ended, with its exit code and CPU time."""
        assert self._process is not None
        try:
            pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
        except ChildProcessError:  # a library has waited for every child: the report is drawn, and its CPU time is unknown
            self._process, self._rest_until = None, time.monotonic() + LONGEST_REST_SECONDS
            return
        if not pid:
            return
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode not in (0, *ASKED_TO_END):
            self._fail(f"the process that draws them ended with exit code {self._process.returncode}")
        self._process = None
        now, rest = time.monotonic(), max(SHORTEST_REST_SECONDS, REST_FOR_WORK * (used.ru_utime + used.ru_stime))
        self._rest_until, self._next_without_news = now + rest, now + max(rest, LONGEST_REST_SECONDS)

    def _fail(self, why: str) -> None:
        self._has_failed = True
        command = f"python -m {MODULE} {self.folder.path}"
        self._sink.emit(
            ErrorEvent(
                code="picture_failed",
                title="No report of the run",
                message=f"grid.png and curves.svg are no longer drawn: {why}.",
                hint=f"training continues; the run's log says more, and `{command}` tries again",
                severity=Severity.WARNING,
            )
        )


@contextmanager
def render_in_background(folder: RunFolder, sink: EventSink, *, is_first: bool) -> Iterator[BackgroundRenderer | None]:
    """Yields the renderer of a run and draws a last report at the end of the block; None if this process writes no journal."""
    if not is_first or not folder.journal.exists():
        yield None
        return
    renderer = BackgroundRenderer(folder, sink)
    try:
        yield renderer
    finally:
        renderer.finish()

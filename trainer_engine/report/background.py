"""Has a run's picture drawn beside training, seldom enough that nobody notices."""

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
"""Seconds of rest for each second that the last picture kept a processor busy."""
SHORTEST_REST_SECONDS = 5.0
LONGEST_REST_SECONDS = PICTURE_SECONDS
"""The curves grow also where nothing is validated or saved; then the picture is made anew after this, if the rest is over."""
LAST_SECONDS = 20.0
"""How long the end of a run waits for its last picture; that is drawn to its end all the same."""
LOOK_AGAIN_SECONDS = 0.02
ASKED_TO_END = (-signal.SIGTERM, -signal.SIGINT)
"""Exit codes of a process that the whole group of the run was asked to end with: no fault of its own."""
MODULE = "trainer_engine.report"


class BackgroundRenderer:
    """One process at a time. It is in the run's process group, and is killed with it. A failure is one warning, and the end of drawing."""

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
        """The run trains from here on: before that there is nothing to draw."""
        self._has_begun = True
        self._next_without_news = time.monotonic() + LONGEST_REST_SECONDS

    def note_news(self) -> None:
        """There is something that the picture should show soon."""
        self._has_news = True

    def look(self) -> None:
        """Between two steps: begin a picture where one is due. Takes microseconds."""
        now = time.monotonic()
        if now < self._rest_until or self._has_failed:
            return
        if self._process is not None:
            self._bury()
        elif self._has_news or now >= self._next_without_news:
            self._start()

    def finish(self) -> None:
        """Draw the run as it ended, also where it failed; wait a little for it."""
        if not self._has_begun or self._has_failed:
            return
        deadline = time.monotonic() + LAST_SECONDS
        self._wait(deadline)
        if self._process is None and not self._has_failed:
            self._start("--nice", "0")  # nothing trains any more, and the run waits for it
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
            self._bury()
            if self._process is not None:
                time.sleep(LOOK_AGAIN_SECONDS)

    def _bury(self) -> None:
        """Note how the process ended, if it has, and how long it worked: only the system knows that, whenever we come to ask."""
        assert self._process is not None
        try:
            pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
        except ChildProcessError:  # some library waits for every child; the picture is drawn, and how long it took nobody knows
            self._process, self._rest_until = None, time.monotonic() + LONGEST_REST_SECONDS
            return
        if not pid:
            return
        self._process.returncode = os.waitstatus_to_exitcode(status)
        if self._process.returncode not in (0, *ASKED_TO_END):
            self._fail(f"the process that draws it ended with {self._process.returncode}")
        self._process = None
        now, rest = time.monotonic(), max(SHORTEST_REST_SECONDS, REST_FOR_WORK * (used.ru_utime + used.ru_stime))
        self._rest_until, self._next_without_news = now + rest, now + max(rest, LONGEST_REST_SECONDS)

    def _fail(self, why: str) -> None:
        self._has_failed = True
        command = f"python -m {MODULE} {self.folder.path}"
        self._sink.emit(
            ErrorEvent(
                code="picture_failed",
                title="No picture of the run",
                message=f"grid.png and curves.svg are not drawn any more: {why}.",
                hint=f"training goes on; the run's log says more, and `{command}` tries again",
                severity=Severity.WARNING,
            )
        )


@contextmanager
def painted(folder: RunFolder, sink: EventSink, *, is_first: bool) -> Iterator[BackgroundRenderer | None]:
    """Who draws the run, and draws it a last time at the end of the block; None where no journal is kept or another process keeps it."""
    if not is_first or not folder.journal.exists():
        yield None
        return
    renderer = BackgroundRenderer(folder, sink)
    try:
        yield renderer
    finally:
        renderer.finish()

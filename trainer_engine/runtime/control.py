"""Requests to a running engine: signals and command files. Standard library only, because it listens before torch is loaded."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer_engine.contract.commands import Command, take
from trainer_engine.contract.run import RunFolder

LOOK_AGAIN_SECONDS = 0.05


class Stopped(BaseException):
    """The run was asked to stop before it trained; there is nothing to save.

    NOTE: a BaseException, because libraries that try optional imports catch Exception and would take it for a missing package.
    """


class ControlRequests:
    """Collects SIGTERM, SIGINT and the files of the commands folder."""

    def __init__(self, folder: RunFolder | None) -> None:
        """``folder`` is None for a process that receives only signals; the first process reads the commands."""
        self._folder = folder
        self._signalled = False
        self._interrupting = False
        self._blocks = 0
        """Depth of nested ``uninterrupted`` blocks."""
        self._postponed = False
        """Whether a signal was received in such a block."""
        self._waiting: dict[Command, None] = {}
        self._looked_at = 0.0

    def listen(self) -> None:
        """Handle SIGTERM and SIGINT as stop requests. Until ``training_begins`` the first signal raises Stopped."""
        self._interrupting = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self._signalled = not self._signalled, True
        if self._interrupting and first:
            if self._blocks:
                self._postponed = True
            else:
                raise Stopped

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Let no signal interrupt the block. Raises Stopped after it if one was received in it."""
        self._blocks += 1
        try:
            yield
        finally:
            self._blocks -= 1
        if self._postponed and not self._blocks:
            self._postponed = False
            if self._interrupting:
                raise Stopped

    def training_begins(self) -> None:
        """Take up signals between two steps from now on. Raises Stopped if a stop was requested before."""
        self._interrupting = False
        self.raise_if_stopped()

    @property
    def broke_in(self) -> bool:
        """Whether a signal interrupted the preparation of the run.

        A later error may be its consequence: some libraries do not let Stopped pass, and an interrupted import leaves a broken module.
        """
        return self._interrupting and self._signalled

    def training_ends(self) -> None:
        """Only record signals from now on."""
        self._interrupting = False

    def raise_if_stopped(self) -> None:
        if self.stop_asked():
            raise Stopped

    def stop_asked(self) -> bool:
        """Whether a stop was requested, by a signal or by a command file."""
        return self._signalled or self._stop_waits()

    def _stop_waits(self) -> bool:
        now = time.monotonic()
        if now - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._look()
            self._looked_at = now
        return Command.STOP in self._waiting

    def _look(self) -> None:
        if self._folder is not None:
            self._waiting.update(dict.fromkeys(take(self._folder)))

    def take_up(self) -> set[Command]:
        """The commands received since the last call; a stop is returned by every call."""
        self._look()
        asked = set(self._waiting)
        self._waiting = {Command.STOP: None} if Command.STOP in asked else {}
        return asked | ({Command.STOP} if self._signalled else set())

"""How a run is asked to stop, and to do things between two steps. Standard library only: it listens before torch is loaded."""

from __future__ import annotations

import signal
import time
from types import FrameType

from trainer_engine.contract.commands import Command, take
from trainer_engine.contract.run import RunFolder

LOOK_AGAIN_SECONDS = 0.05


class Stopped(BaseException):
    """The run was asked to stop before it trained: nothing is to be saved.

    NOTE: a BaseException, so that libraries which try one import after another do not take it for a missing package.
    """


class ControlRequests:
    """SIGTERM, SIGINT and the files of the commands folder, as one list of things to do."""

    def __init__(self, folder: RunFolder | None) -> None:
        """``folder``: None for a process that only hears signals, because another one reads the commands."""
        self._folder = folder
        self._signalled = False
        self._interrupting = False
        self._waiting: dict[Command, None] = {}
        self._looked_at = 0.0

    def listen(self) -> None:
        """From here on, SIGTERM and SIGINT ask to stop; while the run is being prepared they end it at once, by raising Stopped."""
        self._interrupting = True
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first, self._signalled = not self._signalled, True
        if self._interrupting and first:
            raise Stopped

    def training_begins(self) -> None:
        """From here on a signal is taken up between two steps. Raises Stopped where a stop was asked for before."""
        self._interrupting = False
        self.raise_if_stopped()

    @property
    def broke_in(self) -> bool:
        """Whether a signal has broken into the preparation of the run. Whatever fails there after it may well fail of it: not every library
        lets through what is raised within it, and an import that was broken off leaves its module in pieces."""
        return self._interrupting and self._signalled

    def training_ends(self) -> None:
        """Signals are only noted from here on."""
        self._interrupting = False

    def raise_if_stopped(self) -> None:
        if self.stop_asked():
            raise Stopped

    def stop_asked(self) -> bool:
        """Whether the run is to end."""
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
        """Everything asked for since the last call; a stop is said again each time."""
        self._look()
        asked = set(self._waiting)
        self._waiting = {Command.STOP: None} if Command.STOP in asked else {}
        return asked | ({Command.STOP} if self._signalled else set())

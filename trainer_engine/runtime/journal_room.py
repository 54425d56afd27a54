"""Decides what a run does while its journal cannot be written."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from trainer_engine.config.options.checkpointing import CheckpointingOptions
from trainer_engine.contract.atomic import why_not_written
from trainer_engine.contract.errors import DiskFull
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.hooks.runner import HookRunner
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.events import Journal

LOOK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True)
class JournalRoom:
    """Checks the journal between two steps and applies ``disk_low_action``.

    A run does not train without a journal: it waits, or it ends with a checkpoint in ``output_dir``.
    """

    journal: Journal
    options: CheckpointingOptions
    requests: ControlRequests
    scripts: HookRunner | None = None

    def why_not(self, step: int) -> str:
        """The reason why the run must save and end; empty once the journal is written or a stop is requested."""
        trouble = self.journal.catch_up()
        if trouble is None:
            return ""
        reason = f"{why_not_written(self.journal.path.parent, trouble)} The run's journal is stored there."
        if self.options.disk_low_action == "wait":
            self._wait(reason)
            return ""
        if self.options.disk_low_action == "script" and self.scripts is not None:
            self.scripts.make_room(step)
            return reason if self.journal.catch_up() is not None else ""
        return reason

    def insist(self) -> None:
        """The same check before anything is loaded. Raises DiskFull."""
        reason = self.why_not(0)
        if reason:
            raise DiskFull(f"{reason} Nothing was trained.", hint="free some space there and start again")

    def settle(self) -> None:
        """At the end of the run: wait until the last events are written, unless a stop is requested."""
        if self.options.disk_low_action == "wait" and not self.requests.stop_asked():
            self.why_not(0)

    def _wait(self, reason: str) -> None:
        print(f"disk_low: {reason} Training waits until it can be written.", file=sys.stderr)
        message = f"{reason} Training waits until it can be written."
        self.journal.emit(Notification(code="disk_low", title="Waiting for disk space", message=message, severity=Severity.WARNING))
        while self.journal.catch_up() is not None:
            if self.requests.stop_asked():
                return
            time.sleep(LOOK_AGAIN_SECONDS)
        self.journal.emit(Notification(code="disk_space_again", title="Disk space again", message="Training continues."))

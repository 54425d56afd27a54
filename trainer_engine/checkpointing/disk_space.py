"""What a run does where the disk has no room for a checkpoint."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.options.checkpointing import CheckpointingOptions
from trainer_engine.config.options.hooks import DISK_LOW
from trainer_engine.contract.errors import DiskFull
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.runtime.events import EventSink
from trainer_engine.runtime.stages import Advance

LOOK_AGAIN_SECONDS = 0.5
REPORT_EVERY_SECONDS = 30.0
MEGABYTE = 10**6


@dataclass(frozen=True)
class DiskSpace:
    """Insists on room, waits for it, or has a program make some."""

    options: CheckpointingOptions
    folder: Path
    sink: EventSink
    stop_asked: Callable[[], bool]
    """Whether the run was asked to stop while it waits; the checkpoint is then tried with the space that is left."""
    run_script: Callable[[int], None] = lambda step: None
    """To its end: the program that frees some space, before the checkpoint of a step."""

    def make_sure(self, needed: int, step: int, advance: Advance) -> None:
        """``needed``: bytes, for the checkpoint of ``step``. Returns once there is room. Raises DiskFull where the run is not to wait."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = max(needed, self.options.disk_low_bytes)
        free = self._free()
        if free >= wanted:
            return
        message = f"A checkpoint needs {wanted / 1e6:.0f} MB to be free, and {self.folder} has {free / 1e6:.0f} MB left."
        if self.options.disk_low_action == "stop":
            raise DiskFull(message, hint="free some space, or lower checkpoints_total_limit or disk_low_threshold")
        if self.options.disk_low_action == "script":
            self._have_room_made(wanted, step, message)
        else:
            self._emit("disk_low", "Waiting for disk space", f"{message} Training waits until there is room.", Severity.WARNING)
            self._wait(wanted, advance)
        if self._free() >= wanted:
            self._emit("disk_space_again", "Disk space again", "There is room again; training goes on.", Severity.INFO)

    def _have_room_made(self, wanted: int, step: int, message: str) -> None:
        self._emit("disk_low", "Low on disk space", f"{message} Training waits for {DISK_LOW}.", Severity.WARNING)
        self.run_script(step)
        free = self._free()
        if free < wanted:
            message = (
                f"A checkpoint needs {wanted / 1e6:.0f} MB to be free, and after {DISK_LOW} {self.folder} has {free / 1e6:.0f} MB left."
            )
            raise DiskFull(message, hint=f"free some space, and look at what {DISK_LOW} does: the run's log has its output")

    def _wait(self, wanted: int, advance: Advance) -> None:
        reported_at = 0.0
        while (free := self._free()) < wanted and not self.stop_asked():
            time.sleep(LOOK_AGAIN_SECONDS)
            if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
                reported_at = time.monotonic()
                advance(free // MEGABYTE, wanted // MEGABYTE)
        advance(wanted // MEGABYTE, wanted // MEGABYTE)

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _emit(self, code: str, title: str, message: str, severity: Severity) -> None:
        self.sink.emit(Notification(code=code, title=title, message=message, severity=severity))

"""An engine that trains nothing: a real process that writes a journal through the contract and obeys signals.

``python fake_engine.py trainer_engine RUN_DIR [behaviour] [steps] [seconds a step]``; the first two arguments make it look like an
engine to whoever searches for the processes of a run.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from trainer_engine.contract.errors import ExitCode  # noqa: E402
from trainer_engine.contract.events import (  # noqa: E402
    CheckpointEvent,
    ErrorEvent,
    Event,
    ProgressEvent,
    StageEvent,
    StageKey,
    StageStatus,
    StatusEvent,
    encode,
    utc_now,
)
from trainer_engine.contract.run import ExitReport, RunFolder  # noqa: E402


class FakeEngine:
    """Behaviours: ``completes``, ``fails``, ``dies`` (no word), ``deaf`` (ignores SIGTERM), ``lingers`` (says its last word and stays),
    ``fails_unreported`` (its journal says why, there is no report), ``fails_mute`` (nothing but its exit code),
    ``completes_unreported`` (its journal says so, there is no report)."""

    def __init__(self, folder: RunFolder, behaviour: str, steps: int, seconds_per_step: float) -> None:
        self.folder, self.behaviour, self.steps, self.seconds_per_step = folder, behaviour, steps, seconds_per_step
        self.seq = 0
        self.should_stop = False

    def emit(self, event: Event) -> None:
        with self.folder.journal.open("a", encoding="utf-8") as journal:
            journal.write(encode(event, seq=self.seq) + "\n")
        self.seq += 1

    def ask_to_stop(self, *_: object) -> None:
        self.should_stop = self.behaviour != "deaf"

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self.ask_to_stop)
        self.emit(StatusEvent(status="starting"))
        for done in (0, 2):
            status = StageStatus.COMPLETED if done else StageStatus.RUNNING
            self.emit(StageEvent(key=StageKey.VAE_CACHE, status=status, current=done, total=2))
        self.emit(StatusEvent(status="running"))
        print("training", flush=True)
        for step in range(1, self.steps + 1):
            self.take_step(step)
            if self.should_stop:
                return self.end(ExitCode.STOPPED, "stopped", step)
            if self.behaviour == "dies" and step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.behaviour == "fails" and step == 3:
                self.emit(ErrorEvent(code="out_of_memory", title="Training failed", message="8 GiB were not enough", hint="smaller batch"))
                return self.end(ExitCode.OUT_OF_MEMORY, "error", step)
            if self.behaviour == "fails_unreported" and step == 3:
                self.emit(ErrorEvent(code="disk_full", title="Training failed", message="The disk is full.", hint="free some space"))
            if self.behaviour in ("fails_unreported", "fails_mute") and step == 3:
                return int(ExitCode.DISK)
        path = self.folder.path / f"checkpoint-{self.steps}"
        self.emit(CheckpointEvent(path=str(path), label="final", step=self.steps, is_final=True, size_bytes=7))
        return self.end(ExitCode.COMPLETED, "completed", self.steps)

    def take_step(self, step: int) -> None:
        time.sleep(self.seconds_per_step)
        event = ProgressEvent(
            step=step, total_steps=self.steps, epoch=1, loss=1 / step, learning_rate=1e-4, grad_norm=0.5,
            samples_per_second=2.0, seconds_per_step=self.seconds_per_step, eta_seconds=0.0,
        )  # fmt: skip
        self.emit(event)

    def end(self, code: ExitCode, status: str, step: int) -> int:
        self.emit(StatusEvent(status=status))
        if self.behaviour == "completes_unreported":
            return int(code)
        failed = status == "error"
        ExitReport(
            exit_code=int(code),
            status=status,
            error_code="out_of_memory" if failed else None,
            message="8 GiB were not enough" if failed else "",
            hint="smaller batch" if failed else "",
            step=step,
            finished_at=utc_now(),
        ).write(self.folder)
        if self.behaviour == "lingers":
            time.sleep(60)
        return int(code)


def main(arguments: list[str]) -> int:
    folder = RunFolder(Path(arguments[1])).create()
    behaviour = arguments[2] if len(arguments) > 2 else "completes"
    steps = int(arguments[3]) if len(arguments) > 3 else 5
    return FakeEngine(folder, behaviour, steps, float(arguments[4]) if len(arguments) > 4 else 0.01).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

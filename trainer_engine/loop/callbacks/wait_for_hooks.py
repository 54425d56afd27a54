from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.contract.events import StageKey
from trainer_engine.hooks.runner import PATIENCE_SECONDS, HookRunner
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import TrainState
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Advance, Stages


@dataclass
class WaitForHooks(Callback):
    """Waits at the run's end for the programs that it started. Stands last: the result is written and uploaded."""

    scripts: HookRunner
    output_dir: Path
    results: Mapping[str, str]
    """What a finished run leaves: name -> path in the output folder."""
    uploads_result: bool
    """Whether something uploads it, which then says itself when the upload is complete."""
    stages: Stages
    processes: Processes

    def after_training(self, state: TrainState) -> None:
        with self.processes.first_alone() as is_first:
            if is_first:
                self._finish(state)

    def _finish(self, state: TrainState) -> None:
        if state.is_finished and not self.uploads_result:
            result = self.output_dir / next(iter(self.results.values()))
            self.scripts.after_upload("", result if result.is_dir() else result.parent, state.step)
        self._wait(f"{self.scripts.launcher.options.hooks.script_timeout} s each at most", self.scripts.wait)

    def close(self, state: TrainState) -> None:
        """Where an error ends the run, what was started for its last checkpoint is not torn away."""
        with suppress(OSError):
            self._wait(f"{PATIENCE_SECONDS:.0f} s at most", self.scripts.wait_a_little)

    def _wait(self, limit: str, wait: Callable[[Advance], None]) -> None:
        self.scripts.look()
        waiting = self.scripts.unfinished
        if waiting:
            with self.stages.stage(StageKey.SCRIPTS, f"Waiting for {', '.join(waiting)} ({limit})") as advance:
                wait(advance)

"""Programs of the user: after checkpoints, and in place of the validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.contract.events import StageKey
from trainer_engine.hooks.runner import HookRunner
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Stages


@dataclass
class HooksCallback(Callback):
    """Starts the programs that belong to checkpoints. Stands before whatever uploads them."""

    scripts: HookRunner
    uploads_checkpoints: bool
    """Whether something uploads them, which then says itself when an upload is complete."""

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        self.scripts.look()

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        self.scripts.after_checkpoint(saved.path, saved.step)
        if not self.uploads_checkpoints:
            self.scripts.after_upload("", saved.path, saved.step)


@dataclass
class ExternalValidation:
    """Validates with a program instead of the family's pipeline."""

    scripts: HookRunner
    stages: Stages
    processes: Processes
    settle: Callable[[TrainState], None]
    """Waits until a checkpoint that is being written is whole: the program looks at the newest."""

    def run(self, state: TrainState, key: StageKey) -> None:
        """To the program's end, or until it is started in the background. Called on every process."""
        with state.timed("validation"), self.processes.first_alone() as is_first:
            if is_first:
                self.settle(state)
                with self.stages.stage(key):
                    self.scripts.validate(state.step)

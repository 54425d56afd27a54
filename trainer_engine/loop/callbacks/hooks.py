from __future__ import annotations

from dataclasses import dataclass

from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.hooks.runner import HookRunner
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState


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

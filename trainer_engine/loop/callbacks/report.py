from __future__ import annotations

from dataclasses import dataclass

from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.report.background import BackgroundRenderer


@dataclass
class ReportCallback(Callback):
    """Has the picture of the run drawn after validations and checkpoints, and now and then between them."""

    renderer: BackgroundRenderer
    _seconds_validated: float = 0.0

    def before_training(self, state: TrainState) -> None:
        self.renderer.begin()
        self._look(state)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        self._look(state)

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        self.renderer.note_news()

    def _look(self, state: TrainState) -> None:
        if state.seconds["validation"] != self._seconds_validated:
            self._seconds_validated = state.seconds["validation"]
            self.renderer.note_news()
        self.renderer.look()

from __future__ import annotations

from dataclasses import dataclass

from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.report.background import BackgroundRenderer


@dataclass
class ReportCallback(Callback):
    """Renders the run report in the background after each validation and checkpoint, and from time to time between them."""

    renderer: BackgroundRenderer

    def before_training(self, state: TrainState) -> None:
        self.renderer.begin()
        self.renderer.look()

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        self.renderer.look()

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        self.renderer.note_news()

    def after_validation(self, state: TrainState) -> None:
        self.renderer.note_news()

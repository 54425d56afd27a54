from __future__ import annotations

from dataclasses import dataclass

from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.optim.ema import MovingAverage


@dataclass
class EmaCallback(Callback):
    """Moves the average of the weights."""

    average: MovingAverage

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if outcome.taken:
            self.average.after_step(state.step)

"""When things happen in a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

from trainer_engine.batches.loader import Loader, StepBatches
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.loop.step import Step


@dataclass
class Trainer:
    """Batch, step, callbacks, until the run is finished or asked to stop."""

    state: TrainState
    loader: Loader
    step: Step
    callbacks: Callback
    has_results: Callable[[], bool]
    """Whether everything that a finished run leaves is there."""
    around_step: Callable[[int], AbstractContextManager[None]] = lambda _step: nullcontext()
    """A context for the step of that number, counted from 1."""

    def fit(self) -> None:
        try:
            self._fit()
        finally:
            self.callbacks.close(self.state)

    def _fit(self) -> None:
        self.callbacks.before_training(self.state)
        with closing(self._batches()) as steps:
            for batches in steps:
                outcome = self._take(batches)
                self.callbacks.after_step(self.state, outcome)
                if self.state.should_stop:
                    break
        self.callbacks.after_training(self.state)

    def _batches(self) -> Generator[StepBatches, None, None]:
        """Those of the steps that are left, the time spent waiting for them counted."""
        steps = iter(self.loader.steps(self.state.step, self.state.total_steps))
        while not self.state.should_stop:
            began = time.perf_counter()
            batches = next(steps, None)
            self.state.seconds_per_step = time.perf_counter() - began
            self.state.seconds["data_wait"] += self.state.seconds_per_step
            if batches is None:
                return
            yield batches

    def _take(self, batches: StepBatches) -> StepOutcome:
        began = time.perf_counter()
        with self.around_step(batches.step + 1):
            outcome = self.step.take(batches)
        took = time.perf_counter() - began
        state = self.state
        state.seconds["step"] += took
        state.seconds_per_step += took
        state.step = batches.step + 1
        state.loss = outcome.loss if math.isfinite(outcome.loss) else None
        state.learning_rate = outcome.learning_rate
        return outcome

"""What a callback may listen to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.loop.state import StepOutcome, TrainState


class Callback:
    """Reacts to the events of a run. Each method is called on every process, unless it says otherwise."""

    def before_training(self, state: TrainState) -> None:
        """The network is ready; no step of this process has been taken."""

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        """One optimizer step was taken, or skipped."""

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        """A checkpoint was saved to disk and was announced. Between two steps, or after the last; only on the first process.

        ``state`` may be some steps beyond ``saved.step``, because checkpoints are written beside the steps.
        """

    def after_validation(self, state: TrainState) -> None:
        """A validation has ended, with images or without; between two steps, before the first or after the last."""

    def after_training(self, state: TrainState) -> None:
        """No step follows: the run is finished, or ``should_stop``."""

    def close(self, state: TrainState) -> None:
        """The last call, also where an error ends the run: let go of threads and the like. Raises nothing."""


class Callbacks(Callback):
    """Several, called in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = tuple(callbacks)

    def before_training(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.before_training(state)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        for callback in self.callbacks:
            callback.after_step(state, outcome)

    def after_checkpoint(self, state: TrainState, saved: CheckpointInfo) -> None:
        for callback in self.callbacks:
            callback.after_checkpoint(state, saved)

    def after_validation(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.after_validation(state)

    def after_training(self, state: TrainState) -> None:
        for callback in self.callbacks:
            callback.after_training(state)

    def close(self, state: TrainState) -> None:
        """All of them, whatever one of them may raise."""
        with ExitStack() as closing:
            for callback in reversed(self.callbacks):
                closing.callback(callback.close, state)

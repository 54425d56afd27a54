from __future__ import annotations

import math
from dataclasses import dataclass

from trainer_engine.batches.collate import Collator
from trainer_engine.batches.loader import samples_before
from trainer_engine.batches.sampler import Sampler
from trainer_engine.contract.errors import NonFiniteLoss
from trainer_engine.contract.events import ErrorEvent, Severity
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.runtime.events import EventSink

PATIENCE = 3
MAX_LISTED = 16


@dataclass
class NonFiniteCallback(Callback):
    """Names the samples of steps that were skipped because they were not finite, and ends the run after several in a row."""

    sink: EventSink
    sampler: Sampler
    collator: Collator
    in_a_row: int = 0

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if outcome.taken:
            self.in_a_row = 0
            return
        if outcome.overflowed:
            return  # float16's loss scale was too large, and is smaller now: that is how it finds its place
        self.in_a_row += 1
        samples = self._samples(state.step - 1, outcome)
        named = ", ".join(f"{file} at timestep {timestep}" for file, timestep in samples[:MAX_LISTED])
        message = f"Step {state.step} was skipped: loss {outcome.loss}, gradient norm {outcome.grad_norm}, with {named}."
        details = {"step": state.step, "samples": [{"file": file, "timestep": timestep} for file, timestep in samples[:MAX_LISTED]]}
        self.sink.emit(
            ErrorEvent(code="non_finite_step", title="Step skipped", message=message, severity=Severity.WARNING, details=details)
        )
        if self.in_a_row >= PATIENCE:
            raise NonFiniteLoss(
                f"{self.in_a_row} steps in a row were not finite. {message}",
                hint="lower learning_rate, look at the files named, or set mixed_precision=no; the checkpoints before it are untouched",
            )

    def _samples(self, step: int, outcome: StepOutcome) -> list[tuple[str, float]]:
        """(file, timestep) of every sample of the passes that were not finite; of all passes where only the gradients were not."""
        broken = [number for number, loss in enumerate(outcome.pass_losses) if not math.isfinite(loss)]
        batches = self.sampler.step(step)
        before = samples_before(batches)
        found = []
        for number in broken or range(len(batches)):
            timesteps = self.collator.timesteps(step, batches[number], before[number])
            found += [(item.sample.location, timestep) for item, timestep in zip(batches[number], timesteps, strict=True)]
        return found

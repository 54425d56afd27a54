from __future__ import annotations

from dataclasses import dataclass

from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.runtime.journal_room import JournalRoom


@dataclass
class JournalCallback(Callback):
    """Lets no step follow one whose events cannot be written, and ends the run for it where it is not to wait."""

    room: JournalRoom

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if not state.is_finished:
            state.failure = state.failure or self.room.why_not(state.step)

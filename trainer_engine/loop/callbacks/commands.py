"""What ends a run before its last step: a request, or a journal that cannot be written."""

from __future__ import annotations

from dataclasses import dataclass

from trainer_engine.contract.commands import Command
from trainer_engine.contract.events import StatusEvent
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.events import EventSink
from trainer_engine.runtime.journal_room import JournalRoom


@dataclass
class JournalCallback(Callback):
    """Lets no step follow one whose events cannot be written, and ends the run for it where it is not to wait."""

    room: JournalRoom

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if not state.is_finished:
            state.failure = state.failure or self.room.why_not(state.step)


@dataclass
class CommandsCallback(Callback):
    """Reads the requests to the run after each optimizer step. A request to one process reaches all of them."""

    sink: EventSink
    requests: ControlRequests
    processes: Processes

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        asked = self.requests.take_up()
        if state.failure:
            asked.add(Command.STOP)
        checkpoint, validate, stop = self.processes.any_of([command in asked for command in Command])
        state.checkpoint_asked |= checkpoint
        state.validation_asked |= validate
        if stop and not state.should_stop and not state.is_finished:
            state.should_stop = True
            why = state.failure or f"Asked to stop after step {state.step}."
            self.sink.emit(StatusEvent(status="stopping", message=f"{why} Saving first."))

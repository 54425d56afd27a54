from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.checkpoints import Content, prune, save_checkpoint, set_aside_later
from trainer_engine.contract.best_checkpoint import best_of
from trainer_engine.contract.checkpoint_files import CheckpointInfo, checkpoint_name, list_checkpoints
from trainer_engine.contract.events import CheckpointEvent, Notification, StageKey
from trainer_engine.contract.options.checkpointing import CheckpointingOptions
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.stages import Stages
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.processes import Processes


@dataclass
class Checkpointing(Callback):
    """Saves at the intervals, when asked to, and when the run ends; says so once the checkpoint is whole on disk."""

    options: CheckpointingOptions
    output_dir: Path
    content: Callable[[TrainState], Content]
    """What there is to save. Raises NonFiniteLoss where the weights are not finite."""
    stages: Stages
    processes: Processes
    on_saved: Callable[[TrainState, CheckpointInfo], None]
    """Tells the other callbacks."""
    before_saving: Callable[[TrainState], None] = lambda state: None
    """Called on every process."""
    _saved_step: int = 0

    def before_training(self, state: TrainState) -> None:
        self._saved_step = state.step  # what a run goes on from need not be saved again
        with self.processes.first_alone() as is_first:
            aside = set_aside_later(self.output_dir, state.step) if is_first else None
        if aside is not None:
            message = f"Checkpoints of an earlier run, beyond step {state.step}, lie in {aside} now."
            self.stages.voice.tell(Notification(code="set_aside", title="Checkpoints set aside", message=message))

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if not (state.should_stop or state.is_finished) and self._is_due(state):
            self._save(state)

    def after_training(self, state: TrainState) -> None:
        if state.step != self._saved_step:
            self._save(state)

    def _is_due(self, state: TrainState) -> bool:
        epochs = self.options.checkpoint_epoch_interval
        at_epoch = epochs is not None and state.ends_epoch and state.epoch % epochs == 0
        return state.checkpoint_asked or at_epoch or state.step % self.options.checkpoint_step_interval == 0

    def _save(self, state: TrainState) -> None:
        state.checkpoint_asked = False
        self._saved_step = state.step
        self.before_saving(state)
        with state.timed("checkpoint"), self.processes.first_alone() as is_first:
            if is_first:
                self._write(state)
        state.newest_checkpoint = str(self.output_dir / checkpoint_name(state.step))

    def _write(self, state: TrainState) -> None:
        with self.stages.stage(StageKey.CHECKPOINT_SAVE, f"Saving {checkpoint_name(state.step)}"):
            info = save_checkpoint(self.output_dir, self.content(state))
        self.stages.voice.tell(
            CheckpointEvent(
                title="Checkpoint saved",
                message=f"{info.name} is whole on disk.",
                path=str(info.path),
                label=info.name,
                step=info.step,
                is_final=state.is_finished,
                size_bytes=info.size_bytes,
            )
        )
        self.on_saved(state, info)
        best = best_of(list_checkpoints(self.output_dir))
        prune(self.output_dir, self.options.checkpoints_total_limit, info.name, protected=[best.name] if best else [])

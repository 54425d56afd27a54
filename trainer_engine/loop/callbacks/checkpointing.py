from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError

from trainer_engine.checkpoints import SPARE_BYTES, Content, save_checkpoint
from trainer_engine.contract.checkpoint_files import CheckpointInfo, checkpoint_name
from trainer_engine.contract.errors import EngineError
from trainer_engine.contract.events import CheckpointEvent, Notification, StageKey
from trainer_engine.contract.options.checkpointing import CheckpointingOptions
from trainer_engine.host_copies import room_for
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.disk_space import DiskSpace
from trainer_engine.loop.stages import Stages
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.processes import Processes
from trainer_engine.retention import prune, set_aside_later


class Contents(Protocol):
    """What there is to save. Raises NonFiniteLoss where the weights are not finite."""

    def __call__(self, state: TrainState, *, rolling: bool) -> Content: ...


@dataclass(frozen=True)
class UnderWay:
    """A checkpoint that is being written."""

    is_final: bool
    stage: ExitStack
    """Its stage ends with the block."""
    written: Future[CheckpointInfo]


@dataclass
class Checkpointing(Callback):
    """Saves at the intervals, when asked to, and when the run ends; says so once the checkpoint is whole on disk.

    Steps go on while a checkpoint is written, from a copy in host memory. One is written at a time: the next that is due waits for it.
    Processes other than the first neither write nor wait.
    """

    options: CheckpointingOptions
    output_dir: Path
    content: Contents
    stages: Stages
    processes: Processes
    space: DiskSpace
    on_saved: Callable[[TrainState, CheckpointInfo], None]
    """Tells the other callbacks."""
    before_saving: Callable[[TrainState], None] = lambda state: None
    """Called on every process, before a checkpoint that is no rolling one."""
    protected: Callable[[], Collection[str]] = frozenset
    """Names of checkpoints that the limits do not remove; asked beside the steps."""
    has_room: Callable[[int], bool] = room_for
    """Whether host memory takes a copy of so many bytes."""
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoints"))
    _under_way: UnderWay | None = None
    _pruned: Future[list[str]] | None = None
    _saved_step: int = 0
    """Of the last checkpoint that a run may end with: rolling ones know no evaluation of their weights."""
    _told_of_memory: bool = False

    def before_training(self, state: TrainState) -> None:
        self._saved_step = state.step  # what a run goes on from need not be saved again
        with self.processes.first_alone() as is_first:
            aside = set_aside_later(self.output_dir, state.step) if is_first else None
        if aside is not None:
            message = f"Checkpoints of an earlier run, beyond step {state.step}, lie in {aside} now."
            self.stages.voice.tell(Notification(code="set_aside", title="Checkpoints set aside", message=message))

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        self._announce_if_whole(state)
        if state.should_stop or state.is_finished:
            return
        if self._is_due(state):
            self._save(state)
        elif self.options.checkpointing_rolling_steps and state.step % self.options.checkpointing_rolling_steps == 0:
            self._save(state, rolling=True)

    def after_training(self, state: TrainState) -> None:
        if state.step != self._saved_step:
            self._save(state, beside=False)
        self.settle(state)

    def close(self, state: TrainState) -> None:
        """Where an error ends the run, what is being written is whole and announced before it; that error is the one to be told."""
        with suppress(EngineError, OSError, SafetensorError):
            self.settle(state)
        self._writer.shutdown()

    def _is_due(self, state: TrainState) -> bool:
        epochs = self.options.checkpoint_epoch_interval
        at_epoch = epochs is not None and state.ends_epoch and state.epoch % epochs == 0
        return state.checkpoint_asked or at_epoch or state.step % self.options.checkpoint_step_interval == 0

    def _save(self, state: TrainState, *, rolling: bool = False, beside: bool = True) -> None:
        """``beside``: steps follow that may be taken while it is written."""
        state.checkpoint_asked = False
        if not rolling:
            self._saved_step = state.step
            self.before_saving(state)
        if not self.processes.is_first:
            return
        self.settle(state)
        with state.timed("checkpoint"), ExitStack() as stage:
            label = f"Saving {checkpoint_name(state.step, rolling=rolling)}"
            advance = stage.enter_context(self.stages.stage(StageKey.CHECKPOINT_SAVE, label))
            content = self.content(state, rolling=rolling)
            self.space.make_sure(content.size_bytes + SPARE_BYTES, advance)
            beside = beside and self._fits_into_memory(content)
            written = self._writer.submit(save_checkpoint, self.output_dir, content.held() if beside else content)
            self._under_way = UnderWay(state.is_finished, stage.pop_all(), written)
            if not beside:
                self._announce(state)

    def _fits_into_memory(self, content: Content) -> bool:
        fits = self.has_room(content.size_bytes)
        if not fits and not self._told_of_memory:
            self._told_of_memory = True
            message = f"A copy of {content.size_bytes / 1e6:.0f} MB does not fit into memory: steps wait while checkpoints are written."
            self.stages.voice.tell(Notification(code="checkpoint_in_foreground", title="Steps wait for checkpoints", message=message))
        return fits

    def _announce_if_whole(self, state: TrainState) -> None:
        if self._under_way is not None and self._under_way.written.done():
            self._announce(state)

    def settle(self, state: TrainState) -> None:
        """Until nothing is being written or removed. Raises what went wrong with it."""
        with state.timed("checkpoint_wait"):
            if self._under_way is not None:
                self._announce(state)
            if self._pruned is not None:
                pruned, self._pruned = self._pruned, None
                pruned.result()

    def _announce(self, state: TrainState) -> None:
        """Tell of the checkpoint under way once it is whole, and remove those that are one too many."""
        assert self._under_way is not None
        saved, self._under_way = self._under_way, None
        with saved.stage:
            info = saved.written.result()
        state.newest_checkpoint = str(info.path)
        self.stages.voice.tell(
            CheckpointEvent(
                title="Rolling checkpoint saved" if info.is_rolling else "Checkpoint saved",
                message=f"{info.name} is whole on disk.",
                path=str(info.path),
                label=info.name,
                step=info.step,
                is_final=saved.is_final,
                size_bytes=info.size_bytes,
            )
        )
        self.on_saved(state, info)
        self._pruned = self._writer.submit(self._prune, info.name)

    def _prune(self, keep: str) -> list[str]:
        usual, rolling = self.options.checkpoints_total_limit, self.options.checkpoints_rolling_total_limit
        return prune(self.output_dir, usual, keep, rolling_limit=rolling, protected=frozenset(self.protected()))

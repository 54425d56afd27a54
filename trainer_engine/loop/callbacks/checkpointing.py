from __future__ import annotations

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trainer_engine.checkpointing.disk_space import DiskSpace
from trainer_engine.checkpointing.retention import prune, set_aside_later
from trainer_engine.checkpointing.save import SPARE_BYTES, Content, save_checkpoint
from trainer_engine.checkpointing.snapshot import room_for
from trainer_engine.config.options.checkpointing import CheckpointingOptions
from trainer_engine.contract.checkpoint_files import CheckpointInfo, checkpoint_name
from trainer_engine.contract.errors import DiskFull, EngineError
from trainer_engine.contract.events import CheckpointEvent, ErrorEvent, Notification, Severity, StageKey
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Advance, Stages


class Contents(Protocol):
    """What there is to save. Raises NonFiniteLoss where the weights are not finite."""

    def __call__(self, state: TrainState, *, rolling: bool) -> Content: ...


@dataclass(frozen=True)
class UnderWay:
    """A checkpoint that is being written."""

    is_final: bool
    stage: ExitStack
    """Its stage ends with the block."""
    advance: Advance
    content: Content
    written: Future[CheckpointInfo]


@dataclass
class CheckpointCallback(Callback):
    """Saves at the intervals, when asked to, and when the run ends; says so once all of the checkpoint is on disk.

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
    is_sharded: bool = False
    """Whether each process has a part of the weights, so that all of them gather what the first one writes."""
    has_room: Callable[[int], bool] = room_for
    """Whether host memory takes a copy of so many bytes."""
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoints"))
    _under_way: UnderWay | None = None
    _pruned: Future[list[str]] | None = None
    _saved_step: int = 0
    """Of the checkpoint saved last that is no rolling one: a run that ends leaves one that the next does not push out."""
    _told_of_memory: bool = False

    def before_training(self, state: TrainState) -> None:
        self._saved_step = state.step  # what a run goes on from need not be saved again
        with self.processes.first_alone() as is_first:
            aside = set_aside_later(self.output_dir, self._own_step(state)) if is_first else None
        if aside is not None:
            message = f"Checkpoints of an earlier run, beyond step {max(0, self._own_step(state))}, lie in {aside} now."
            self.stages.sink.emit(Notification(code="set_aside", title="Checkpoints set aside", message=message))

    def _own_step(self, state: TrainState) -> int:
        """The last step of this output folder that belongs to the run; -1 where it goes on from a checkpoint elsewhere."""
        elsewhere = state.newest_checkpoint and Path(state.newest_checkpoint).resolve().parent != self.output_dir.resolve()
        return -1 if elsewhere else state.step

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
        """If an error ends the run, a checkpoint that is being written is completed and announced first; the error stays the reason."""
        saved = self._under_way
        failure = saved.written.exception() if saved is not None else None
        with suppress(EngineError, OSError):
            if saved is not None and failure is not None:
                self._under_way = None
                message = f"{saved.content.name} was not saved: {failure}"
                self.stages.sink.emit(
                    ErrorEvent(code="checkpoint_failed", title="Checkpoint not saved", message=message, severity=Severity.WARNING)
                )
                saved.stage.__exit__(type(failure), failure, failure.__traceback__)
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
            if self.is_sharded:
                self.content(state, rolling=rolling).held(keeps=False)
            return
        self.settle(state)
        with state.timed("checkpoint"), ExitStack() as stage:
            label = f"Saving {checkpoint_name(state.step, rolling=rolling)}"
            advance = stage.enter_context(self.stages.stage(StageKey.CHECKPOINT_SAVE, label))
            content = self.content(state, rolling=rolling)
            self.space.make_sure(content.size_bytes + SPARE_BYTES, state.step, advance)
            beside = beside and self._fits_into_memory(content)
            content = content.held() if beside or self.is_sharded else content
            written = self._writer.submit(save_checkpoint, self.output_dir, content)
            self._under_way = UnderWay(state.is_finished, stage.pop_all(), advance, content, written)
            if not beside:
                self._announce(state)

    def _fits_into_memory(self, content: Content) -> bool:
        fits = self.has_room(content.size_bytes)
        if not fits and not self._told_of_memory:
            self._told_of_memory = True
            message = f"A copy of {content.size_bytes / 1e6:.0f} MB does not fit into memory: steps wait while checkpoints are written."
            self.stages.sink.emit(Notification(code="checkpoint_in_foreground", title="Steps wait for checkpoints", message=message))
        return fits

    def _announce_if_whole(self, state: TrainState) -> None:
        if self._under_way is not None and self._under_way.written.done():
            self._announce(state)

    def settle(self, state: TrainState) -> None:
        """Until nothing is being written or removed. Raises what went wrong with what is written."""
        with state.timed("checkpoint_wait"):
            if self._under_way is not None:
                self._announce(state)
            if self._pruned is not None:
                pruned, self._pruned = self._pruned, None
                self._emit_failure(pruned)

    def _emit_failure(self, pruned: Future[list[str]]) -> None:
        """One that is too many takes space; what has been saved is whole all the same."""
        try:
            pruned.result()
        except OSError as error:
            message = f"Checkpoints beyond the limits could not be removed: {error}. Training goes on."
            hint = "look at the permissions of output_dir; it is tried again after the next checkpoint"
            sink, title = self.stages.sink, "Checkpoints not removed"
            sink.emit(ErrorEvent(code="checkpoint_not_removed", title=title, message=message, hint=hint, severity=Severity.WARNING))

    def _announce(self, state: TrainState) -> None:
        """Tell of the checkpoint under way once it is whole, and remove those that are one too many."""
        assert self._under_way is not None
        saved, self._under_way = self._under_way, None
        with saved.stage:
            info = self._whole(saved)
        state.newest_checkpoint = str(info.path)
        self.stages.sink.emit(
            CheckpointEvent(
                title="Rolling checkpoint saved" if info.is_rolling else "Checkpoint saved",
                message=f"{info.name} was saved to disk.",
                path=str(info.path),
                label=info.name,
                step=info.step,
                is_final=saved.is_final,
                size_bytes=info.size_bytes,
            )
        )
        self.on_saved(state, info)
        self._pruned = self._writer.submit(self._prune, info.name)

    def _whole(self, saved: UnderWay) -> CheckpointInfo:
        """Once it is written. A disk that fills up meanwhile is one that was full before: that is tried once more, where it is to be."""
        try:
            return saved.written.result()
        except DiskFull as error:
            if self.options.disk_low_action == "stop":
                raise
            message = f"{error.message} It is tried once more."
            self.stages.sink.emit(Notification(code="disk_filled_up", title="Disk full", message=message, severity=Severity.WARNING))
        self.space.make_sure(saved.content.size_bytes + SPARE_BYTES, saved.content.step, saved.advance)
        return self._writer.submit(save_checkpoint, self.output_dir, saved.content).result()

    def _prune(self, keep: str) -> list[str]:
        usual, rolling = self.options.checkpoints_total_limit, self.options.checkpoints_rolling_total_limit
        return prune(self.output_dir, usual, keep, rolling_limit=rolling, protected=frozenset(self.protected()))

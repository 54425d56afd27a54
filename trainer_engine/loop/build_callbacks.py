"""Everything that a run does besides its steps, in one list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from trainer_engine.checkpointing.disk_space import DiskSpace
from trainer_engine.config.options.hooks import EXTERNAL
from trainer_engine.contract.best_checkpoint import best_names
from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.evaluation.runs import measuring
from trainer_engine.loop.callbacks.base import Callback, Callbacks
from trainer_engine.loop.callbacks.checkpointing import Checkpointing
from trainer_engine.loop.callbacks.clip_scoring import Scoring
from trainer_engine.loop.callbacks.commands import Commanding
from trainer_engine.loop.callbacks.ema import Averaging
from trainer_engine.loop.callbacks.evaluation import Evaluating
from trainer_engine.loop.callbacks.external_validation import ExternalValidation
from trainer_engine.loop.callbacks.hooks import Hooking
from trainer_engine.loop.callbacks.journal_watch import JournalWatch
from trainer_engine.loop.callbacks.memory import MemoryWatch
from trainer_engine.loop.callbacks.non_finite import FiniteWatch
from trainer_engine.loop.callbacks.progress import Progress
from trainer_engine.loop.callbacks.publishing import Publishing, UploadDone
from trainer_engine.loop.callbacks.report import Portraying
from trainer_engine.loop.callbacks.results import Finishing
from trainer_engine.loop.callbacks.validation import Validating
from trainer_engine.loop.callbacks.wait_for_hooks import AwaitingScripts
from trainer_engine.loop.components import Parts
from trainer_engine.loop.context import Surroundings
from trainer_engine.loop.publishing import make_publishing
from trainer_engine.loop.state import TrainState
from trainer_engine.optim.optimizers import evaluating
from trainer_engine.validation.announce import Announcer


def publishing_of(around: Surroundings, results: Mapping[str, str]) -> Publishing:
    """What uploads, and calls the program that belongs to uploads."""

    def on_uploaded(done: UploadDone) -> None:
        if around.scripts is not None:
            around.scripts.after_upload(done.address, done.path, done.step)

    return make_publishing(around.options, results, around.stages, around.processes, around.requests, on_uploaded)


def callbacks(around: Surroundings, parts: Parts, publishing: Publishing, scoring: Scoring | None) -> Callback:
    """In the order in which they hear of things: what is saved is evaluated before, and uploaded after the result is written."""
    together: Callbacks

    def showing() -> AbstractContextManager[None]:
        return evaluating(parts.optimizer)

    def on_saved(state: TrainState, saved: CheckpointInfo) -> None:
        together.after_checkpoint(state, saved)

    options, stages, processes, voice = around.options, around.stages, around.processes, around.stages.voice
    evaluations = Evaluating(
        showing, options, measuring(parts, processes), parts.average, parts.history, stages, processes, around.requests
    )
    checkpointing = Checkpointing(
        options.checkpointing,
        parts.output_dir,
        parts.content,
        stages,
        processes,
        _disk_space(around, parts),
        on_saved,
        evaluations.before_checkpoint,
        lambda: best_names(parts.output_dir),
    )
    hooking, awaiting = _scripts(around, parts, publishing)
    together = Callbacks(
        [
            *([Averaging(parts.average)] if parts.average is not None else []),
            Progress(voice, processes.device),
            MemoryWatch(processes.device, around.resident_at_start, around.memory_estimate),
            FiniteWatch(voice, parts.loader.sampler, parts.loader.collator),
            *([JournalWatch(around.journal_room)] if around.journal_room is not None else []),
            Commanding(voice, around.requests, processes),
            checkpointing,
            evaluations,
            _validating(around, parts, showing, checkpointing, scoring),
            *hooking,
            *([Portraying(around.painter)] if around.painter is not None else []),
            Finishing(showing, parts.output_dir, parts.trainable, parts.average, stages, processes),
            publishing,
            *awaiting,
        ]
    )
    return together


def _validating(
    around: Surroundings,
    parts: Parts,
    showing: Callable[[], AbstractContextManager[None]],
    checkpointing: Checkpointing,
    scoring: Scoring | None,
) -> Validating:
    options, stages, prepared = around.options, around.stages, parts.prepared
    return Validating(
        showing,
        options,
        parts.family,
        parts.trainable,
        parts.average,
        prepared.prompts,
        prepared.edits,
        prepared.eval_prompts,
        stages,
        around.processes,
        around.requests,
        Announcer(stages.voice, options.validation, parts.family, around.media),
        _external_validation(around, checkpointing),
        parts.visitors,
        scoring,
    )


def _disk_space(around: Surroundings, parts: Parts) -> DiskSpace:
    space = DiskSpace(around.options.checkpointing, parts.output_dir, around.stages.voice, around.requests.stop_asked)
    return space if around.scripts is None else replace(space, run_script=around.scripts.make_room)


def _external_validation(around: Surroundings, checkpointing: Checkpointing) -> ExternalValidation | None:
    wanted = around.options.hooks.validation_method == EXTERNAL and not around.options.validation.validation_disable
    if not wanted or around.scripts is None:
        return None
    return ExternalValidation(around.scripts, around.stages, around.processes, checkpointing.settle)


def _scripts(around: Surroundings, parts: Parts, publishing: Publishing) -> tuple[list[Callback], list[Callback]]:
    """(what starts the programs that belong to checkpoints, what waits for all programs at the end)"""
    if around.scripts is None:
        return [], []
    targets = list(publishing.uploads.targets.values())
    waiting = AwaitingScripts(around.scripts, parts.output_dir, parts.trainable.results, bool(targets), around.stages, around.processes)
    return [Hooking(around.scripts, any(target.takes_checkpoints for target in targets))], [waiting]

"""All callbacks of a run, in the order in which they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from trainer_engine.checkpointing.disk_space import DiskSpace
from trainer_engine.config.options.hooks import EXTERNAL
from trainer_engine.contract.best_checkpoint import best_names
from trainer_engine.contract.checkpoint_files import CheckpointInfo
from trainer_engine.evaluation.runs import measuring
from trainer_engine.loop.callbacks.base import Callback, Callbacks
from trainer_engine.loop.callbacks.checkpointing import CheckpointCallback
from trainer_engine.loop.callbacks.clip_scoring import ClipScoring
from trainer_engine.loop.callbacks.commands import CommandsCallback, JournalCallback
from trainer_engine.loop.callbacks.ema import EmaCallback
from trainer_engine.loop.callbacks.epoch_crops import EpochCropsCallback
from trainer_engine.loop.callbacks.evaluation import EvaluationCallback
from trainer_engine.loop.callbacks.hooks import ExternalValidation, HooksCallback
from trainer_engine.loop.callbacks.memory import MemoryCallback
from trainer_engine.loop.callbacks.non_finite import NonFiniteCallback
from trainer_engine.loop.callbacks.progress import ProgressCallback
from trainer_engine.loop.callbacks.publishing import PublishingCallback, UploadDone
from trainer_engine.loop.callbacks.results import ReportCallback, ResultsCallback
from trainer_engine.loop.callbacks.validation import ValidationCallback
from trainer_engine.loop.callbacks.wait_for_hooks import WaitForHooks
from trainer_engine.loop.components import RunComponents
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.publishing import make_publishing
from trainer_engine.loop.state import TrainState
from trainer_engine.optim.optimizers import evaluating
from trainer_engine.validation.announce import Announcer


def publishing_of(run_context: RunContext, results: Mapping[str, str]) -> PublishingCallback:
    """What uploads, and calls the program that belongs to uploads."""

    def on_uploaded(done: UploadDone) -> None:
        if run_context.scripts is not None:
            run_context.scripts.after_upload(done.address, done.path, done.step)

    return make_publishing(run_context.options, results, run_context.stages, run_context.processes, run_context.requests, on_uploaded)


def callbacks(run_context: RunContext, parts: RunComponents, publishing: PublishingCallback, scoring: ClipScoring | None) -> Callback:
    """In the order in which they hear of things: what is saved is evaluated before, and uploaded after the result is written."""
    together: Callbacks

    def showing() -> AbstractContextManager[None]:
        return evaluating(parts.optimizer)

    def on_saved(state: TrainState, saved: CheckpointInfo) -> None:
        together.after_checkpoint(state, saved)

    def on_validated(state: TrainState) -> None:
        together.after_validation(state)

    options, stages, processes, sink = run_context.options, run_context.stages, run_context.processes, run_context.stages.sink
    evaluations = EvaluationCallback(
        showing=showing,
        options=options,
        measuring=measuring(parts, processes),
        average=parts.average,
        history=parts.history,
        stages=stages,
        processes=processes,
        requests=run_context.requests,
    )
    checkpointing = CheckpointCallback(
        options=options.checkpointing,
        output_dir=parts.output_dir,
        content=parts.content,
        stages=stages,
        processes=processes,
        space=_disk_space(run_context, parts),
        on_saved=on_saved,
        before_saving=evaluations.before_checkpoint,
        protected=lambda: best_names(parts.output_dir),
        is_sharded=parts.trainable.is_sharded,
    )
    hooking, awaiting = _scripts(run_context, parts, publishing)
    together = Callbacks(
        [
            *([EmaCallback(parts.average)] if parts.average is not None else []),
            ProgressCallback(sink, processes.device),
            _memory(run_context),
            NonFiniteCallback(sink, parts.loader.sampler, parts.loader.collator),
            *([JournalCallback(run_context.journal_room)] if run_context.journal_room is not None else []),
            *([EpochCropsCallback(parts.prepared)] if parts.prepared.crops_change else []),
            CommandsCallback(sink, run_context.requests, processes),
            checkpointing,
            evaluations,
            _validating(run_context, parts, showing, on_validated, checkpointing, scoring),
            *hooking,
            *([ReportCallback(run_context.renderer)] if run_context.renderer is not None else []),
            _results(run_context, parts, showing),
            publishing,
            *awaiting,
        ]
    )
    return together


def _memory(run_context: RunContext) -> MemoryCallback:
    interval = run_context.options.memory.accelerator_cache_clear_interval
    return MemoryCallback(run_context.processes.device, run_context.resident_at_start, run_context.memory_estimate, interval)


def _results(run_context: RunContext, parts: RunComponents, showing: Callable[[], AbstractContextManager[None]]) -> ResultsCallback:
    return ResultsCallback(
        showing=showing,
        output_dir=parts.output_dir,
        trainable=parts.trainable,
        average=parts.average,
        stages=run_context.stages,
        processes=run_context.processes,
    )


def _validating(
    run_context: RunContext,
    parts: RunComponents,
    showing: Callable[[], AbstractContextManager[None]],
    on_validated: Callable[[TrainState], None],
    checkpointing: CheckpointCallback,
    scoring: ClipScoring | None,
) -> ValidationCallback:
    options, stages, prepared = run_context.options, run_context.stages, parts.prepared

    @contextmanager
    def showing_images() -> Iterator[None]:
        with showing(), parts.assistant.in_images() if parts.assistant else nullcontext():
            yield

    return ValidationCallback(
        showing=showing_images,
        options=options,
        family=parts.family,
        trainable=parts.trainable,
        average=parts.average,
        prompts=prepared.prompts,
        edits=prepared.edits,
        eval_prompts=prepared.eval_prompts,
        stages=stages,
        processes=run_context.processes,
        requests=run_context.requests,
        on_validated=on_validated,
        announcer=Announcer(stages.sink, options.validation, parts.family, run_context.media),
        external=_external_validation(run_context, checkpointing),
        validation_adapters=parts.validation_adapters,
        scoring=scoring,
    )


def _disk_space(run_context: RunContext, parts: RunComponents) -> DiskSpace:
    space = DiskSpace(run_context.options.checkpointing, parts.output_dir, run_context.stages.sink, run_context.requests.stop_asked)
    return space if run_context.scripts is None else replace(space, run_script=run_context.scripts.make_room)


def _external_validation(run_context: RunContext, checkpointing: CheckpointCallback) -> ExternalValidation | None:
    wanted = run_context.options.hooks.validation_method == EXTERNAL and not run_context.options.validation.validation_disable
    if not wanted or run_context.scripts is None:
        return None
    return ExternalValidation(run_context.scripts, run_context.stages, run_context.processes, checkpointing.settle)


def _scripts(run_context: RunContext, parts: RunComponents, publishing: PublishingCallback) -> tuple[list[Callback], list[Callback]]:
    """(what starts the programs that belong to checkpoints, what waits for all programs at the end)"""
    if run_context.scripts is None:
        return [], []
    targets = list(publishing.uploads.targets.values())
    waiting = WaitForHooks(
        scripts=run_context.scripts,
        output_dir=parts.output_dir,
        results=parts.trainable.results,
        uploads_result=bool(targets),
        stages=run_context.stages,
        processes=run_context.processes,
    )
    return [HooksCallback(run_context.scripts, any(target.takes_checkpoints for target in targets))], [waiting]

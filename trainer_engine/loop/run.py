"""Runs a training job from its options and datasets to its end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from trainer_engine.config.datasets import Dataloader
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.resuming.choice import MORE_TO_TRAIN
from trainer_engine.config.run_paths import refuse_closed_places
from trainer_engine.contract.errors import DiskFull, ExitCode, OutOfMemory
from trainer_engine.contract.events import Notification, StatusEvent
from trainer_engine.contract.path_rule import EVERYWHERE, PlaceRule
from trainer_engine.contract.run import RunFolder
from trainer_engine.hooks.runner import HookContext
from trainer_engine.loop.assemble import assemble
from trainer_engine.loop.callbacks.progress import resident_bytes
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.state import TrainState
from trainer_engine.loop.trainer import Trainer
from trainer_engine.report.background import render_in_background
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.devices import out_of_memory_numbers, prepare_arithmetic, ran_out_of_memory
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import LaunchEnvironment
from trainer_engine.runtime.events import EventSink, Journal
from trainer_engine.runtime.journal_room import JournalRoom
from trainer_engine.runtime.stages import Stages
from trainer_engine.trackers.sink import tracked

NOTHING: Mapping[str, int] = MappingProxyType({})
WITHOUT_HOOKS = HookContext()


class Ended(NamedTuple):
    """How a run ended without an error."""

    code: ExitCode
    step: int
    """Optimizer steps done."""
    message: str = ""
    """Further information for people; may be empty."""


def train(
    *,
    options: TrainingOptions,
    dataloader: Dataloader,
    environment: LaunchEnvironment,
    sink: EventSink,
    requests: ControlRequests,
    media: Path,
    memory_estimate: Mapping[str, int] = NOTHING,
    hooks: HookContext = WITHOUT_HOOKS,
    journal: Journal | None = None,
    places: PlaceRule = EVERYWHERE,
) -> Ended:
    """Train, and return how the run ended.

    ``media`` is the folder in the run folder for images that only events refer to. ``memory_estimate`` is reported next to the measured
    peak. ``hooks`` says which hooks may start, ``places`` which places it may use. ``journal`` is the file behind ``sink``; while it
    cannot be written, ``disk_low_action`` applies. Raises EngineError, and Stopped if a stop is requested before training begins.
    """
    at_start = resident_bytes()
    prepare_arithmetic(options)
    processes = _processes(environment, options)
    requests.raise_if_stopped()
    try:
        with (
            tracked(sink, options, environment) as tracked_sink,
            render_in_background(RunFolder(media.parent), tracked_sink, is_first=environment.is_first) as renderer,
            closing(hooks.open(options, tracked_sink, requests)) as runner,
        ):
            stages = Stages(tracked_sink, lambda: refuse_closed_places(places, options, dataloader))
            room = JournalRoom(journal, options.checkpointing, requests, runner) if journal else None
            run_context = RunContext(
                options=options,
                dataloader=dataloader,
                processes=processes,
                stages=stages,
                requests=requests,
                media=media,
                resident_at_start=at_start,
                memory_estimate=memory_estimate,
                renderer=renderer,
                scripts=runner,
                journal_room=room,
                places=places,
            )
            if room:
                room.insist()
            ended = _fit(assemble(run_context), options, tracked_sink, requests)
            if room:
                room.settle()
            return ended
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"Memory ran out: {error}{out_of_memory_numbers(processes.device)}",
            hint="lower train_batch_size and raise gradient_accumulation_steps by the same factor, or turn gradient_checkpointing on",
        ) from error
    finally:
        processes.leave()


def _processes(environment: LaunchEnvironment, options: TrainingOptions) -> Processes:
    spread = options.distributed
    return Processes(environment, spread.group_size, in_step=spread.fsdp_enable, sends_from_host=spread.keeps_parts_on_host)


def _fit(trainer: Trainer, options: TrainingOptions, sink: EventSink, requests: ControlRequests) -> Ended:
    state, message = trainer.state, ""
    requests.training_begins()
    if state.is_finished:
        message = _nothing_left(state)
        sink.emit(Notification(code="already_finished", title="Already finished", message=message))
        if trainer.has_results():
            return Ended(ExitCode.COMPLETED, state.step, message)
    sink.emit(StatusEvent(status="running", message=f"Training from step {state.step} to {state.total_steps}."))
    trainer.fit()
    if state.failure and not state.is_finished:
        saved = f" {Path(state.newest_checkpoint).name} was saved after step {state.step}." if state.newest_checkpoint else ""
        raise DiskFull(state.failure + saved, hint="free some space there, then start again to continue from the newest checkpoint")
    return Ended(ExitCode.COMPLETED if state.is_finished else ExitCode.STOPPED, state.step, message)


def _nothing_left(state: TrainState) -> str:
    if state.ended_early:
        return f"Nothing is left to train. {state.ended_early}"
    name, left = Path(state.newest_checkpoint).name, max(0, state.total_steps - state.step)
    return f"Nothing was trained: the run goes on from {name}: {left} of {state.total_steps} steps left. {MORE_TO_TRAIN}"

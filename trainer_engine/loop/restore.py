"""Puts a run where a checkpoint was."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from trainer_engine.adapters.adapter import AddedAdapter
from trainer_engine.adapters.build import start_from
from trainer_engine.checkpointing.optimizer_state import unpack_optimizer
from trainer_engine.checkpointing.retention import remove
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.resuming.base_weights import base_weights, moved_sources
from trainer_engine.config.resuming.choice import (
    LATEST,
    SavedRun,
    changed_data,
    choose,
    data_differences,
    refuse_changed_data,
    refuse_other_run,
    without_base,
)
from trainer_engine.config.resuming.identity import layout_of, order_change, run_identity
from trainer_engine.contract.checkpoint_files import (
    EMA_TENSORS,
    EVALUATIONS_FILE,
    MANIFEST,
    OPTIMIZER_DOCUMENT,
    OPTIMIZER_TENSORS,
    newest_verified,
)
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.families.base import Family
from trainer_engine.loop.components import RunComponents
from trainer_engine.loop.prepared import Prepared
from trainer_engine.runtime.events import EventSink
from trainer_engine.weights.hub import hub_cache


def find_checkpoint(options: TrainingOptions, family: Family, sink: EventSink, *, may_delete: bool) -> SavedRun | None:
    """What ``resume_from_checkpoint`` asks for, verified; None for a fresh start. Raises CheckpointUnusable.

    ``may_delete``: this process is the one that removes what does not verify, where the options say so.
    """
    bad: list[str] = []

    def passed_over(name: str, problems: list[str]) -> None:
        bad.append(name)
        message = f"{name} does not verify and is not used: {' '.join(problems[:3])}"
        sink.emit(Notification(code="checkpoint_broken", title="Broken checkpoint", message=message, severity=Severity.WARNING))

    wanted, output_dir = options.checkpointing.resume_from_checkpoint, Path(options.run.output_dir)
    try:
        saved = choose(output_dir, wanted, on_bad=passed_over)
    finally:
        if may_delete and options.checkpointing.delete_invalid_checkpoints:
            _delete_invalid(output_dir, bad, sink)
    if saved is not None:
        _refuse_other_run(saved, options, family, sink)
    elif wanted == LATEST:
        sink.emit(Notification(code="fresh_start", title="Fresh start", message=f"There is no checkpoint to go on from in {output_dir}."))
    return saved


def _refuse_other_run(saved: SavedRun, options: TrainingOptions, family: Family, sink: EventSink) -> None:
    """Raises CheckpointUnusable where the checkpoint is of another run, or of other base weights."""
    if options.model.model_type == "lora" or family.spec.beside:
        for folder in sorted(family.spec.network_folders.intersection(family.spec.base_folders)):
            family.parts.find(folder)  # it is loaded next in any case, and it cannot be compared before it is here
    base = base_weights(options.model, family.spec, hub_cache())
    refuse_other_run(saved, run_identity(options, family.spec, family.prediction_type), base)
    if saved.base is None:
        sink.emit(Notification(code="base_not_compared", title="Base weights not compared", message=without_base(saved)))
        return
    for moved in moved_sources(saved.base, base):
        message = f"{moved}, with which {saved.folder.name} was trained."
        sink.emit(Notification(code="base_moved", title="Base model elsewhere", message=message))


def _delete_invalid(output_dir: Path, names: list[str], sink: EventSink) -> None:
    """Not while none verifies: then it may be the disk that cannot be read. Folders without a manifest are none of ours."""
    if not names or newest_verified(output_dir) is None:
        return
    for name in names:
        if (output_dir / name / MANIFEST).is_file():
            remove(output_dir / name)
            message = f"{name} did not verify and was removed."
            sink.emit(Notification(code="checkpoint_removed", title="Checkpoint removed", message=message, severity=Severity.WARNING))


def compare_data(saved: SavedRun, options: TrainingOptions, processes: int, prepared: Prepared, sink: EventSink) -> None:
    """Raises CheckpointUnusable where batches or datasets are others than then, unless the options say that this is meant."""
    differing = data_differences(saved, layout_of(options, processes), prepared.sample_names, prepared.settings)
    if not options.run.i_know_what_i_am_doing:
        refuse_changed_data(saved, differing)
    if differing:
        message = changed_data(saved, differing)
        sink.emit(Notification(code="data_changed", title="Data changed", message=message, severity=Severity.WARNING))


def begin(parts: RunComponents) -> None:
    """Puts a run that begins with ``init_lora`` at its step, with the average of ``init_lora_ema``. Raises InvalidOptions.

    Does nothing in other runs.
    """
    adapter, given = parts.trainable, parts.options.adapter
    if not isinstance(adapter, AddedAdapter) or not given.init_lora:
        return
    parts.state.step = parts.state.first_step = given.init_lora_step or 0
    if given.init_lora_ema and parts.average is not None:
        weights = [parameter.detach().clone() for parameter in adapter.parameters]
        start_from(adapter, "init_lora_ema", Path(given.init_lora_ema))
        parts.average.begin()
        with torch.no_grad():
            for parameter, weight in zip(adapter.parameters, weights, strict=True):
                parameter.copy_(weight)


def restore(parts: RunComponents, saved: SavedRun, sink: EventSink) -> None:
    """Optimizer, average, loss scale and position; the weights were loaded from the checkpoint. Raises CheckpointUnusable."""
    changed = order_change(saved.state)
    if changed:
        sink.emit(Notification(code="order_changed", title="Order of samples changed", message=changed, severity=Severity.WARNING))
    try:
        document = json.loads((saved.folder / OPTIMIZER_DOCUMENT).read_bytes())
        unpack_optimizer(parts.optimizer, parts.trainable.names, document, load_file(saved.folder / OPTIMIZER_TENSORS))
        if parts.average is not None:
            parts.average.restore(load_file(saved.folder / EMA_TENSORS), saved.state["average_updates"])
        _restore_history(parts, saved, sink)
        _restore_position(parts, saved)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointUnusable(f"{saved.folder.name} does not fit this run: {error}") from error
    theirs = saved.base or {}
    parts.base = {name: theirs[name] if name in theirs and not found.digest else found for name, found in parts.base.items()}
    state = parts.state
    where = saved.folder.name if saved.is_of(parts.output_dir) else str(saved.folder)
    message = f"Going on from {where}: step {saved.step} of {state.total_steps}, epoch {state.epoch}."
    sink.emit(Notification(code="resumed", title="Resumed", message=message, details={"checkpoint": str(saved.folder), "step": saved.step}))


def _restore_position(parts: RunComponents, saved: SavedRun) -> None:
    """Step, loss, learning rate and loss scale. Raises KeyError, ValueError, TypeError, and RuntimeError for another loss scale."""
    loss, rate = saved.state["loss"], saved.state["schedule"]["learning_rate"]
    if saved.state["scaler"]:
        parts.step.scaler.load_state_dict(saved.state["scaler"])
    state = parts.state
    state.step = state.first_step = saved.step
    state.loss = None if loss is None else float(loss)
    state.learning_rate = float(rate)
    state.newest_checkpoint = str(saved.folder)


def _restore_history(parts: RunComponents, saved: SavedRun, sink: EventSink) -> None:
    """The evaluations so far, and what follows from them. Raises OSError, ValueError, KeyError, TypeError."""
    path, history = saved.folder / EVALUATIONS_FILE, parts.history
    if not history.measure or not path.exists():
        return
    if not history.restore(json.loads(path.read_bytes())):
        message = (
            f"The evaluations up to {saved.folder.name} measured something else (images, captions, timesteps or encoders): they start anew."
        )
        title = "Evaluations start anew"
        sink.emit(Notification(code="evaluations_changed", title=title, message=message, severity=Severity.WARNING))
    if history.newest:
        parts.state.metrics = history.newest.shown
    reason = history.reason_to_stop(parts.options.evaluation)
    if reason:
        parts.state.end_early(reason)

"""Checkpoints that are written beside the steps: the same bytes, one at a time, announced once they are whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights

from tests.helpers.params import first_fast
from tests.helpers.tiny_run import HereRun, Listener, tiny_datasets, tiny_options, train_here
from trainer_engine.adapters.build import make_trainable
from trainer_engine.checkpointing import retention
from trainer_engine.checkpointing import save as checkpoints
from trainer_engine.checkpointing.snapshot import HostCopies, room_for
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.parse import parse_options
from trainer_engine.contract import commands
from trainer_engine.contract.checkpoint_files import MANIFEST, foreign_files, list_checkpoints, verify
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import CheckpointUnusable, DiskFull, ExitCode, NonFiniteLoss
from trainer_engine.contract.events import (
    CheckpointEvent,
    ErrorEvent,
    Event,
    Notification,
    ProgressEvent,
    Severity,
    StageEvent,
    StageKey,
    StageStatus,
)
from trainer_engine.contract.hooks import HookRule
from trainer_engine.contract.run import RunFolder
from trainer_engine.families.load import load_family
from trainer_engine.hooks.runner import HookContext
from trainer_engine.loop.assemble import assemble
from trainer_engine.loop.callbacks.base import Callback, Callbacks
from trainer_engine.loop.callbacks.checkpointing import CheckpointCallback
from trainer_engine.loop.context import RunContext
from trainer_engine.loop.prepared import Prepared
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.loop.trainer import Trainer
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.devices import resolve_devices
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.environment import read_environment
from trainer_engine.runtime.stages import Stages

LYCORIS = {"multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1, "apply_preset": {"target_module": ["Attention", "FeedForward"]}}


def trained_as(kind: str, place: Path) -> dict[str, Any]:
    if kind == "full":
        return {}
    if kind == "standard":
        return {"model_type": "lora", "lora_rank": 2}
    path = place / "lycoris_config.json"
    path.write_text(json.dumps({"algo": kind, **LYCORIS}))
    return {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(path)}


def run_of(
    place: Path, sink: Listener, *, rule: HookRule | None = None, datasets: list[dict[str, Any]] | None = None, **options: Any
) -> tuple[Trainer, CheckpointCallback, RunFolder]:
    """A run that is ready to train, and its part that saves. ``rule``: which programs it may start; None where it starts none."""
    chosen = parse_options(tiny_options(place, **options))
    dataloader, problems = parse_dataloader(datasets or tiny_datasets(place), chosen)
    assert dataloader, problems
    folder = RunFolder(place / "run").create()
    processes, requests = Processes(read_environment({})), ControlRequests(folder)
    scripts = HookContext(rule).open(chosen, sink, requests) if rule is not None else None
    trainer = assemble(
        RunContext(
            options=chosen,
            dataloader=dataloader,
            processes=processes,
            stages=Stages(sink),
            requests=requests,
            media=folder.media,
            scripts=scripts,
        )
    )
    assert isinstance(trainer.callbacks, Callbacks)
    (saving,) = (callback for callback in trainer.callbacks.callbacks if isinstance(callback, CheckpointCallback))
    return trainer, saving, folder


def with_callback(trainer: Trainer, callback: Callback) -> None:
    assert isinstance(trainer.callbacks, Callbacks)
    trainer.callbacks = Callbacks([*trainer.callbacks.callbacks, callback])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST}


def names(output_dir: Path) -> list[str]:
    return [info.name for info in list_checkpoints(output_dir)]


def saved(sink: Listener) -> list[str]:
    return [event.label for event in sink.of(CheckpointEvent)]


class SlowDisk:
    """Saves begin to write when they are let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_write, self.has_begun = threading.Event(), threading.Event()
        self.writing: list[str] = []
        real = checkpoints._write

        def write(staging: Path, content: checkpoints.Content) -> None:
            self.writing.append(content.name)
            self.has_begun.set()
            assert self.may_write.wait(300)
            real(staging, content)

        monkeypatch.setattr(checkpoints, "_write", write)


class After(Callback):
    """Calls something with each step done."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        self.call(state.step)


@pytest.mark.parametrize("kind", first_fast(["full-ema-schedule-free", "standard", "full", "lokr"], 2))
def test_a_checkpoint_written_in_the_background_has_the_bytes_of_one_that_steps_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    more = {"use_ema": True, "optimizer": "adamw_schedulefree"} if kind.endswith("free") else {}
    options = {**trained_as(kind.partition("-")[0], tmp_path), **more, "max_train_steps": 4, "checkpoint_step_interval": 2}
    trainer, saving, _ = run_of(tmp_path, Listener(), output_dir=str(tmp_path / "waiting"), **options)
    saving.has_room = lambda size: False
    trainer.fit()

    trainer, _, _ = run_of(tmp_path, Listener(), output_dir=str(tmp_path / "beside"), **options)
    disk = SlowDisk(monkeypatch)
    written_at: list[bool] = []

    def let_after_the_third(step: int) -> None:
        written_at.append((tmp_path / "beside/checkpoint-2").exists())
        if step == 3:
            disk.may_write.set()

    with_callback(trainer, After(let_after_the_third))
    trainer.fit()
    assert written_at[:3] == [False, False, False], "step 3 was taken before a byte of checkpoint-2 was written"
    ours, theirs = files(tmp_path / "beside/checkpoint-2"), files(tmp_path / "waiting/checkpoint-2")
    assert foreign_files(ours) == [], "a checkpoint of this name could not be fetched"
    assert sorted(ours) == sorted(theirs) and [name for name in ours if ours[name] != theirs[name]] == []
    assert files(tmp_path / "beside/checkpoint-4") == files(tmp_path / "waiting/checkpoint-4")
    assert ours != files(tmp_path / "beside/checkpoint-4")


@pytest.mark.parametrize("algo", ["standard", "lokr", "loha", "full", "dylora", "boft", "diag-oft", "tlora", "locon"])
def test_a_snapshot_of_every_kind_of_adapter_is_what_it_was_when_it_was_taken(tmp_path: Path, algo: str) -> None:
    options = parse_options(tiny_options(tmp_path, **trained_as(algo, tmp_path)))
    trainable = make_trainable(load_family(options, resolve_devices(options, torch.device("cpu"))), None)
    with torch.no_grad():
        torch._foreach_add_(trainable.parameters, 0.01)
        trainable.save(tmp_path / "live")
        with HostCopies() as copy:
            save = trainable.snapshot(copy)
        torch._foreach_add_(trainable.parameters, 1.0)
    save(tmp_path / "copied")
    assert files(tmp_path / "copied") == files(tmp_path / "live") != {}
    assert foreign_files(map(str, files(tmp_path / "live"))) == []


def test_a_model_that_is_loaded_while_a_checkpoint_is_written_changes_none_of_its_bytes(tmp_path: Path) -> None:
    options = parse_options(tiny_options(tmp_path))
    trainable = make_trainable(load_family(options, resolve_devices(options, torch.device("cpu"))), None)
    trainable.save(tmp_path / "live")
    with HostCopies() as copy:
        save = trainable.snapshot(copy)
    with init_empty_weights(include_buffers=True):  # what a library does to every module of the process while it loads one
        save(tmp_path / "copied")
    assert files(tmp_path / "copied") == files(tmp_path / "live") != {}


def test_a_second_save_that_is_due_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Listener()
    trainer, _, _ = run_of(tmp_path, sink, max_train_steps=5, checkpoint_step_interval=2)
    disk = SlowDisk(monkeypatch)
    seen: list[str] = []

    def note(step: int) -> None:
        if step == 3:
            assert disk.has_begun.wait(300)
            seen.extend(disk.writing)
            threading.Timer(0.5, disk.may_write.set).start()

    with_callback(trainer, After(note))
    trainer.fit()
    assert seen == ["checkpoint-2"], "step 3 was taken while the first one was written"
    order = [(type(event), event.step) for event in sink.events if isinstance(event, (ProgressEvent, CheckpointEvent))]
    assert order.index((ProgressEvent, 4)) < order.index((CheckpointEvent, 2)) < order.index((ProgressEvent, 5))
    assert saved(sink) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert trainer.state.seconds["checkpoint_wait"] > 0
    stages = [event.status for event in sink.of(StageEvent) if event.key is StageKey.CHECKPOINT_SAVE]
    assert stages == [StageStatus.RUNNING, StageStatus.COMPLETED] * 3


def test_a_stop_while_a_checkpoint_is_written_leaves_both_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Listener()
    trainer, _, folder = run_of(tmp_path, sink, max_train_steps=9, checkpoint_step_interval=2)
    disk = SlowDisk(monkeypatch)

    def stop_after_two(step: int) -> None:
        if step == 2:
            commands.request(folder, Command.STOP)
            threading.Timer(0.3, disk.may_write.set).start()

    with_callback(trainer, After(stop_after_two))
    trainer.fit()
    assert trainer.state.step == 3 and saved(sink) == ["checkpoint-2", "checkpoint-3"]
    assert all(verify(info.path) == [] for info in list_checkpoints(tmp_path / "output"))


def test_an_error_of_a_step_waits_for_the_checkpoint_that_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Listener()
    trainer, _, _ = run_of(tmp_path, sink, max_train_steps=9, checkpoint_step_interval=2)
    disk = SlowDisk(monkeypatch)

    def fail_after_three(step: int) -> None:
        if step == 3:
            threading.Timer(0.3, disk.may_write.set).start()
            raise NonFiniteLoss("no")

    with_callback(trainer, After(fail_after_three))
    with pytest.raises(NonFiniteLoss):
        trainer.fit()
    assert saved(sink) == ["checkpoint-2"] and verify(tmp_path / "output/checkpoint-2") == []


@pytest.mark.parametrize("journal_is_full", [False, True])
def test_an_error_of_a_step_is_reported_even_if_the_checkpoint_in_progress_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal_is_full: bool
) -> None:
    class Told(Listener):
        def emit(self, event: Event) -> None:
            super().emit(event)
            if journal_is_full and isinstance(event, StageEvent) and event.status is StageStatus.FAILED:
                raise OSError(28, "No space left for the journal")

    class Closing(Callback):
        closed = False

        def close(self, state: TrainState) -> None:
            self.closed = True

    sink, closing, failed = Told(), Closing(), threading.Event()
    trainer, _, _ = run_of(tmp_path, sink, max_train_steps=9, checkpoint_step_interval=2)

    def unforeseen(staging: Path, content: checkpoints.Content) -> None:
        assert failed.wait(30)
        raise TypeError("nobody thought of this")

    def fail_after_two(step: int) -> None:
        if step == 2:
            failed.set()
            raise NonFiniteLoss("no")

    monkeypatch.setattr(checkpoints, "_write", unforeseen)
    with_callback(trainer, After(fail_after_two))
    with_callback(trainer, closing)
    with pytest.raises(NonFiniteLoss):
        trainer.fit()
    assert [event.status for event in sink.of(StageEvent) if event.key is StageKey.CHECKPOINT_SAVE][-1] is StageStatus.FAILED
    assert [event.message for event in sink.of(ErrorEvent)] == ["checkpoint-2 was not saved: nobody thought of this"]
    assert closing.closed and not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoints")]


def test_a_disk_that_fills_up_in_the_background_ends_the_run_as_it_does_in_the_foreground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Listener()
    trainer, _, _ = run_of(tmp_path, sink, max_train_steps=9, checkpoint_step_interval=2)

    def full(staging: Path, content: checkpoints.Content) -> None:
        staging.mkdir()
        raise OSError(28, "No space left on device")

    real = checkpoints._write
    monkeypatch.setattr(checkpoints, "_write", lambda staging, content: (real if content.step == 2 else full)(staging, content))
    with pytest.raises(DiskFull):
        trainer.fit()
    assert saved(sink) == ["checkpoint-2"] and names(tmp_path / "output") == ["checkpoint-2"]
    assert not list((tmp_path / "output").glob(".*"))
    last = [event for event in sink.of(StageEvent) if event.key is StageKey.CHECKPOINT_SAVE][-1]
    assert last.status is StageStatus.FAILED


def test_steps_wait_without_room_for_a_snapshot_and_the_run_reports_it_once(tmp_path: Path) -> None:
    sink = Listener()
    trainer, saving, _ = run_of(tmp_path, sink, max_train_steps=5, checkpoint_step_interval=2)
    saving.has_room = lambda size: False
    trainer.fit()
    assert [event.code for event in sink.of(Notification)].count("checkpoint_in_foreground") == 1
    assert saved(sink) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    assert room_for(1) and not room_for(1 << 60)


def test_callbacks_are_called_for_each_checkpoint_with_its_own_step(tmp_path: Path) -> None:
    heard: list[tuple[str, bool]] = []

    class Hearing(Callback):
        def after_checkpoint(self, state: TrainState, saved: Any) -> None:
            heard.append((saved.name, verify(saved.path) == []))

    trainer, _, _ = run_of(tmp_path, Listener(), max_train_steps=5, checkpoint_step_interval=2, checkpointing_rolling_steps=3)
    hearing = Hearing()
    assert isinstance(trainer.callbacks, Callbacks)
    for callback in trainer.callbacks.callbacks:
        if isinstance(callback, CheckpointCallback):
            callback.on_saved = hearing.after_checkpoint
    trainer.fit()
    assert heard == [("checkpoint-2", True), ("checkpoint-3-rolling", True), ("checkpoint-4", True), ("checkpoint-5", True)]


def test_rolling_checkpoints_are_saved_at_their_own_steps_and_limit(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=9, checkpoint_step_interval=4, checkpointing_rolling_steps=2, checkpoints_total_limit=2)
    assert saved(run.heard) == ["checkpoint-2-rolling", "checkpoint-4", "checkpoint-6-rolling", "checkpoint-8", "checkpoint-9"]
    assert names(run.output_dir) == ["checkpoint-9", "checkpoint-8", "checkpoint-6-rolling"]


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(checkpoint: Path) -> None:
        if checkpoint.name == "checkpoint-1":
            raise PermissionError(13, "Permission denied", str(checkpoint))
        retention_removes(checkpoint)

    retention_removes = retention.remove
    monkeypatch.setattr(retention, "remove", removed)
    run = train_here(tmp_path, max_train_steps=4, checkpoint_step_interval=1, checkpoints_total_limit=1)
    assert run.code is ExitCode.COMPLETED
    told = run.heard.of(ErrorEvent)
    assert {(event.code, event.severity) for event in told} == {("checkpoint_not_removed", Severity.WARNING)}
    assert "Permission denied" in told[0].message
    assert names(run.output_dir) == ["checkpoint-4", "checkpoint-1"]


def test_a_run_resumes_exactly_from_a_rolling_checkpoint(tmp_path: Path) -> None:
    usual = {"max_train_steps": 6, "checkpoint_step_interval": 100}
    whole = train_here(tmp_path, output_dir=str(tmp_path / "whole"), **usual)
    values = {**usual, "output_dir": str(tmp_path / "rolling"), "checkpointing_rolling_steps": 3}
    first = train_here(tmp_path, **values)
    assert names(first.output_dir) == ["checkpoint-6", "checkpoint-3-rolling"]
    again = train_here(tmp_path, **values, resume_from_checkpoint="checkpoint-3-rolling")
    assert [event.step for event in again.heard.of(ProgressEvent)] == [4, 5, 6]
    assert again.files() == whole.files()


def test_latest_is_the_highest_step_rolling_or_not(tmp_path: Path) -> None:
    values = {"max_train_steps": 6, "checkpoint_step_interval": 2, "checkpointing_rolling_steps": 5}
    run = train_here(tmp_path, **values)
    checkpoints_left = list_checkpoints(run.output_dir)
    assert [info.name for info in checkpoints_left] == ["checkpoint-6", "checkpoint-5-rolling", "checkpoint-4", "checkpoint-2"]
    (run.output_dir / "checkpoint-6/optimizer.safetensors").unlink()
    again = train_here(tmp_path, **values)
    assert [event.step for event in again.heard.of(ProgressEvent)] == [6]


@pytest.mark.parametrize("asked_for", [True, False])
def test_a_checkpoint_that_does_not_verify_is_removed_if_the_option_is_set(tmp_path: Path, asked_for: bool) -> None:
    values = {"max_train_steps": 4, "checkpoint_step_interval": 2}
    run = train_here(tmp_path, **values)
    (run.output_dir / "checkpoint-4/optimizer.safetensors").unlink()
    (run.output_dir / "checkpoint-3").mkdir()
    with pytest.raises(CheckpointUnusable):
        train_here(tmp_path, **values, delete_invalid_checkpoints=asked_for, resume_from_checkpoint="checkpoint-4")
    left = {path.name for path in run.output_dir.glob("checkpoint-*")}
    assert left == {"checkpoint-2", "checkpoint-3", *([] if asked_for else ["checkpoint-4"])}
    again = train_here(tmp_path, **values, delete_invalid_checkpoints=asked_for)
    assert [event.step for event in again.heard.of(ProgressEvent)] == [3, 4]


def test_retention_keeps_the_last_checkpoint_although_it_does_not_verify(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=2)
    (run.output_dir / "checkpoint-2/optimizer.safetensors").unlink()
    again = train_here(tmp_path, max_train_steps=2, delete_invalid_checkpoints=True, output_dir=str(run.output_dir))
    assert "checkpoint_removed" not in [event.code for event in again.heard.of(Notification)]


# ---- asked for by hand ----


def asked(place: Path, at: dict[int, int], **options: Any) -> tuple[Listener, Trainer]:
    """A run that is asked for checkpoints as many times as ``at`` says while a step is taken; 0: while it starts up."""
    sink = Listener()
    trainer, _, folder = run_of(place, sink, **options)

    def ask(step: int) -> None:
        for _ in range(at.get(step, 0)):
            commands.request(folder, Command.CHECKPOINT)

    ask(0)
    with_callback(trainer, After(ask))
    trainer.fit()
    return sink, trainer


def test_a_checkpoint_requested_twice_is_saved_once_after_the_next_step(tmp_path: Path) -> None:
    sink, _ = asked(tmp_path, {1: 2}, max_train_steps=4)
    assert saved(sink) == ["checkpoint-2", "checkpoint-4"]


def test_a_checkpoint_requested_during_start_up_is_saved_after_the_first_step(tmp_path: Path) -> None:
    sink, _ = asked(tmp_path, {0: 1}, max_train_steps=3)
    assert saved(sink) == ["checkpoint-1", "checkpoint-3"]


def test_a_requested_checkpoint_that_is_due_anyway_is_saved_once(tmp_path: Path) -> None:
    sink, _ = asked(tmp_path, {1: 1, 4: 1}, max_train_steps=6, checkpoint_step_interval=2, checkpointing_rolling_steps=5)
    assert saved(sink) == ["checkpoint-2", "checkpoint-4", "checkpoint-5", "checkpoint-6"]


def test_a_checkpoint_requested_with_a_stop_is_the_one_of_the_stop(tmp_path: Path) -> None:
    sink = Listener()
    trainer, _, folder = run_of(tmp_path, sink, max_train_steps=9)

    def ask(step: int) -> None:
        if step == 2:
            commands.request(folder, Command.CHECKPOINT)
            commands.request(folder, Command.STOP)

    with_callback(trainer, After(ask))
    trainer.fit()
    assert saved(sink) == ["checkpoint-3"]


def test_a_requested_checkpoint_counts_and_is_kept_like_any_other(tmp_path: Path) -> None:
    sink, _ = asked(tmp_path, {2: 1}, max_train_steps=5, checkpoint_step_interval=2, checkpoints_total_limit=2)
    assert saved(sink) == ["checkpoint-2", "checkpoint-3", "checkpoint-4", "checkpoint-5"]
    assert names(tmp_path / "output") == ["checkpoint-5", "checkpoint-4"]


# ---- little space ----


def test_a_run_in_the_background_ends_as_completed(tmp_path: Path) -> None:
    run: HereRun = train_here(tmp_path, max_train_steps=3, checkpoint_step_interval=1)
    assert run.code is ExitCode.COMPLETED and saved(run.heard) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_run_reads_its_samples_once_however_many_checkpoints_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[dict[str, dict[str, str]]] = []
    sample_names = vars(Prepared)["sample_names"].func

    def counted(self: Prepared) -> dict[str, dict[str, str]]:
        looks.append(sample_names(self))
        return looks[-1]

    monkeypatch.setattr(Prepared, "sample_names", property(counted))
    run = train_here(tmp_path, max_train_steps=4, checkpoint_step_interval=1, checkpoints_total_limit=4)
    saved = list_checkpoints(run.output_dir)
    assert len(saved) == 4 and all(verify(info.path) == [] for info in saved)
    (found,) = looks
    assert len(found["pictures"]) == 8
    (content,) = {(info.path / "samples.json").read_bytes() for info in saved}
    assert json.loads(content) == found

"""What a run does where its output folder has no room for a checkpoint: it ends, waits, or has a program make some."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_run import Listener, train_here
from tests.trainer_engine.loop.test_saving import files, names, run_of, saved
from trainer_engine.checkpointing import save as checkpoints
from trainer_engine.checkpointing.disk_space import DiskSpace
from trainer_engine.contract import commands
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import DiskFull
from trainer_engine.contract.events import (
    ErrorEvent,
    Event,
    Notification,
    StageEvent,
    StageKey,
    StageStatus,
)
from trainer_engine.contract.hooks import EVERYTHING, NOTHING, HookRule
from trainer_engine.contract.run import RunFolder


def codes(sink: Listener) -> list[str]:
    return [event.code for event in sink.of(Notification)]


def test_less_space_than_the_option_requires_ends_the_run_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="to be free"):
        train_here(tmp_path, disk_low_threshold="900000T", max_train_steps=2)
    assert names(tmp_path / "output") == []


def test_a_run_that_waits_for_space_continues_once_there_is_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Listener()
    trainer, _, _ = run_of(tmp_path, sink, max_train_steps=4, checkpoint_step_interval=2, disk_low_action="wait")
    full_while_there_is(tmp_path / "full", monkeypatch)
    threading.Timer(1.0, (tmp_path / "full").unlink).start()
    trainer.fit()
    assert [code for code in codes(sink) if code.startswith("disk")] == ["disk_low", "disk_space_again"]
    assert saved(sink) == ["checkpoint-2", "checkpoint-4"]
    running = [event for event in sink.of(StageEvent) if event.key is StageKey.CHECKPOINT_SAVE]
    assert running[1].status is StageStatus.RUNNING and running[1].total, "status shows how much is wanted"


def full_while_there_is(marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has no space left as long as the file is there."""
    marker.touch()
    real = DiskSpace._free
    monkeypatch.setattr(DiskSpace, "_free", lambda self: 0 if marker.exists() else real(self))


def low_disk(script: str) -> dict[str, Any]:
    return {"max_train_steps": 4, "checkpoint_step_interval": 2, "disk_low_action": "script", "disk_low_script": script}


def test_a_program_that_frees_some_space_lets_the_run_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Listener()
    trainer, _, _ = run_of(tmp_path, sink, rule=EVERYTHING, **low_disk(f"/bin/rm {tmp_path / 'full'}"))
    full_while_there_is(tmp_path / "full", monkeypatch)
    trainer.fit()
    assert [code for code in codes(sink) if code.startswith(("disk", "script"))] == ["disk_low", "script_completed", "disk_space_again"]
    assert saved(sink) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("beside", [True, False])
def test_a_run_waits_for_a_disk_that_fills_up_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    def fill_up_once(staging: Path, content: checkpoints.Content) -> None:
        if content.step == 2 and not (tmp_path / "filled").exists():
            (tmp_path / "filled").touch()
            (tmp_path / "full").touch()
            threading.Timer(0.7, (tmp_path / "full").unlink).start()
            staging.mkdir()
            raise OSError(28, "No space left on device")
        real(staging, content)

    options = {"max_train_steps": 4, "checkpoint_step_interval": 2}
    whole = train_here(tmp_path, output_dir=str(tmp_path / "whole"), **options)
    real = checkpoints._write
    sink = Listener()
    trainer, saving, _ = run_of(tmp_path, sink, disk_low_action="wait", **options)
    saving.has_room = lambda size: beside
    monkeypatch.setattr(checkpoints, "_write", fill_up_once)
    full_while_there_is(tmp_path / "full", monkeypatch)
    (tmp_path / "full").unlink()
    trainer.fit()
    assert [code for code in codes(sink) if code.startswith("disk")] == ["disk_filled_up", "disk_low", "disk_space_again"]
    assert saved(sink) == ["checkpoint-2", "checkpoint-4"]
    assert files(tmp_path / "output/checkpoint-2") == files(whole.output_dir / "checkpoint-2"), "as the weights were then"


def test_a_disk_that_is_full_again_ends_the_run_that_would_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(staging: Path, content: checkpoints.Content) -> None:
        raise OSError(28, "No space left on device")

    sink = Listener()
    trainer, _, _ = run_of(tmp_path, sink, max_train_steps=4, checkpoint_step_interval=2, disk_low_action="wait")
    monkeypatch.setattr(checkpoints, "_write", full)
    with pytest.raises(DiskFull):
        trainer.fit()
    assert codes(sink).count("disk_filled_up") == 1


@pytest.mark.parametrize(
    ("script", "rule", "trouble"),
    [
        ("/bin/true {global_step}", EVERYTHING, []),
        ("/bin/false", EVERYTHING, ["script_failed"]),
        ("/bin/true", NOTHING, ["script_not_allowed"]),
    ],
)
def test_a_program_that_frees_too_little_ends_the_run_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, rule: HookRule, trouble: list[str]
) -> None:
    sink = Listener()
    trainer, _, _ = run_of(tmp_path, sink, rule=rule, **low_disk(script))
    full_while_there_is(tmp_path / "full", monkeypatch)
    with pytest.raises(DiskFull, match="after disk_low_script .* has 0 MB left"):
        trainer.fit()
    told = sink.of(ErrorEvent)
    assert [event.code for event in told] == trouble and all("Training continues" not in event.message for event in told)
    assert names(tmp_path / "output") == []


def test_a_run_that_waits_for_space_can_be_stopped_and_saves_if_it_fits(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Notification) and event.code == "disk_low":
            commands.request(RunFolder(tmp_path / "run"), Command.STOP)

    class Answering(Listener):
        def emit(self, event: Event) -> None:
            super().emit(event)
            stop(event)

    sink = Answering()
    trainer, _, _ = run_of(
        tmp_path, sink, max_train_steps=9, checkpoint_step_interval=2, disk_low_action="wait", disk_low_threshold="900000T"
    )
    trainer.fit()
    assert trainer.state.should_stop and saved(sink)[0] == "checkpoint-2"
    assert "disk_space_again" not in codes(sink)

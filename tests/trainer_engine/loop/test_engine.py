"""The engine as a process: started, asked, stopped, killed."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.tiny_run import (
    ROOT,
    RunFiles,
    TinyRun,
    fork_tiny_run,
    run_in_this_process,
    run_tiny,
    start_ranks,
    start_run,
    start_tiny_run,
    train_here,
    write_job,
)
from trainer_engine.__main__ import TRAINING, load_libraries, main
from trainer_engine.contract import commands
from trainer_engine.contract.checkpoint_files import list_checkpoints, newest_verified, verify
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode, ModelUnavailable
from trainer_engine.contract.events import ProgressEvent
from trainer_engine.contract.run import JobSpec, RunFolder
from trainer_engine.runtime.control import ControlRequests, Stopped

PROGRESS = "training.progress"


def statuses(run: RunFiles) -> list[str]:
    return [entry.data["status"] for entry in run.of_type("training.status")]


def assert_numbered(run: RunFiles) -> None:
    assert [entry.seq for entry in run.entries()] == list(range(len(run.entries())))


def test_a_completed_run_reports_how_it_ended(tmp_path: Path) -> None:
    run = run_tiny(tmp_path)
    report = run.report()
    assert report is not None and (report.exit_code, report.status, report.step) == (0, "completed", 4)
    assert statuses(run) == ["starting", "running", "completed"]
    assert run.entries()[0].data == {"status": "starting"}
    assert_numbered(run)
    assert len(run.of_type(PROGRESS)) == 4


def test_the_engine_announces_itself_before_it_loads_torch(tmp_path: Path) -> None:
    began = time.monotonic()
    run = start_tiny_run(tmp_path)
    run.wait_for("training.status")
    assert time.monotonic() - began < 4
    run.process.kill()
    run.wait()
    heavy = "('torch', 'diffusers', 'numpy', 'accelerate')"
    code = f"import sys, trainer_engine.__main__; print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout == "[]\n"


def test_the_collector_rests_while_the_libraries_load_and_passes_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[bool]()

    class Watch(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            ran.extend([gc.isenabled()] if name == TRAINING else [])

    loaded = importlib.import_module(TRAINING)
    package = sys.modules["trainer_engine.loop"]
    monkeypatch.setattr(package, "run", loaded)
    monkeypatch.delitem(sys.modules, TRAINING)
    monkeypatch.setattr(sys, "meta_path", [Watch(), *sys.meta_path])
    gc.unfreeze()
    load_libraries()
    assert (ran, gc.isenabled()) == ([False], True)
    frozen = gc.get_freeze_count()
    assert frozen > 100_000
    made_since = [[number] for number in range(1000)]
    load_libraries()
    assert gc.get_freeze_count() < frozen + len(made_since)


def test_a_stopped_run_saves_before_it_ends(tmp_path: Path) -> None:
    def stop(run: RunFiles) -> None:
        run.wait_for(PROGRESS)
        run.request(Command.STOP)

    run = run_in_this_process(write_job(tmp_path, max_train_steps=10_000), stop)
    assert run.code == ExitCode.STOPPED
    saved = run.newest_checkpoint()
    assert verify(saved.path) == [] and saved.step >= run.of_type(PROGRESS)[-1].data["step"]
    assert statuses(run) == ["starting", "running", "stopping", "stopped"]
    assert_numbered(run)


def test_sigterm_stops_a_run_that_then_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = train_here(tmp_path, max_train_steps=60, output_dir=str(tmp_path / "whole"))
    run = fork_tiny_run(tmp_path, max_train_steps=60)
    run.wait_for(PROGRESS, count=2)
    run.send(signal.SIGTERM)
    assert run.wait() in (ExitCode.STOPPED, ExitCode.COMPLETED)
    later = train_here(tmp_path, max_train_steps=60)
    assert later.files() == whole.files()


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    options = {"max_train_steps": 60, "checkpoint_step_interval": 7, "use_ema": True, "dataloader_prefetch": True}
    whole = train_here(tmp_path, output_dir=str(tmp_path / "whole"), **options)
    run = fork_tiny_run(tmp_path, **options)
    run.wait_for("training.checkpoint", count=2)
    run.process.kill()
    run.wait()
    announced = run.of_type("training.checkpoint")[-1].extra["checkpoint"]["step"]
    newest = newest_verified(run.output_dir)
    assert newest is not None and newest.step >= announced
    assert run.report() is None
    again = run_in_this_process(run.folder)
    assert again.code == ExitCode.COMPLETED
    assert_numbered(again)
    ours, theirs = list_checkpoints(run.output_dir)[0].path, list_checkpoints(whole.output_dir)[0].path
    for name, content in whole.files().items():
        assert (ours / name).read_bytes() == content, (name, theirs)


@pytest.mark.parametrize(
    ("start", "delay"),
    [
        pytest.param(start_tiny_run, 0.0, id="while torch is loaded"),
        pytest.param(fork_tiny_run, 0.05, id="while the model is loaded"),
        pytest.param(start_tiny_run, 1.5, id="after 1.5 s", marks=pytest.mark.slow),
        pytest.param(start_tiny_run, 4.0, id="after 4 s", marks=pytest.mark.slow),
    ],
)
def test_a_stop_while_the_run_is_prepared_ends_it_at_once(tmp_path: Path, start: Callable[..., TinyRun], delay: float) -> None:
    run = start(tmp_path, max_train_steps=10_000)
    run.wait_for("training.status")
    time.sleep(delay)
    asked = time.monotonic()
    run.send(signal.SIGTERM)
    assert run.wait() == ExitCode.STOPPED
    assert time.monotonic() - asked < 6
    report = run.report()
    assert report is not None and report.status == "stopped"
    assert_numbered(run)


@pytest.mark.parametrize("event", [0, 1])
def test_a_stop_while_an_event_is_written_keeps_the_numbers_of_the_journal_without_gaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None, event: int
) -> None:
    write = os.write

    def write_and_stop(descriptor: int, content: bytes) -> int:
        written = write(descriptor, content)
        if content.startswith(b'{"seq":%d,' % event):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return written

    monkeypatch.setattr(os, "write", write_and_stop)
    folder = write_job(tmp_path)
    assert main([str(folder.path)]) == ExitCode.STOPPED
    run = RunFiles(folder)
    assert statuses(run) == ["starting", "stopped"]
    assert_numbered(run)


def test_a_stop_while_an_error_is_handled_ends_the_run_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None
) -> None:
    def stop(_: ControlRequests) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        return False

    monkeypatch.setattr(ControlRequests, "broke_in", property(stop))
    folder = write_job(tmp_path, no_such_option=1)
    assert main([str(folder.path)]) == ExitCode.STOPPED
    assert json.loads(folder.exit_file.read_bytes())["status"] == "stopped"


@pytest.mark.parametrize("error", [ImportError("half a module"), ModelUnavailable("no model")])
def test_a_stop_that_a_library_swallowed_ends_the_run_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_signals: None, error: Exception
) -> None:
    def break_in(**_: object) -> None:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        raise error

    monkeypatch.setattr("trainer_engine.loop.run.train", break_in)
    folder = write_job(tmp_path)
    assert main([str(folder.path)]) == ExitCode.STOPPED
    assert json.loads(folder.exit_file.read_bytes())["status"] == "stopped"


def test_a_stop_by_file_while_the_run_is_prepared_ends_it(tmp_path: Path) -> None:
    folder = write_job(tmp_path, max_train_steps=10_000)
    commands.request(folder, Command.STOP)
    run = run_in_this_process(folder)
    assert run.code == ExitCode.STOPPED
    assert run.of_type(PROGRESS) == [] and list_checkpoints(run.output_dir) == []


def test_a_checkpoint_and_images_can_be_requested(tmp_path: Path) -> None:
    drawing = {
        "validation_disable": False,
        "validation_resolution": "64x64",
        "validation_num_inference_steps": 1,
        "disable_benchmark": True,
    }

    def request(run: RunFiles) -> None:
        run.wait_for(PROGRESS)
        run.request(Command.CHECKPOINT)
        run.request(Command.VALIDATE)
        assert verify(Path(run.wait_for("training.checkpoint").extra["checkpoint"]["path"])) == []
        run.wait_for("validation.image")
        run.send(signal.SIGTERM)

    steps = {"max_train_steps": 10_000, "validation_step_interval": 100_000, "checkpoint_step_interval": 100_000}
    assert run_in_this_process(write_job(tmp_path, **steps, **drawing), request).code == ExitCode.STOPPED


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ({"learning_rate": -1}, ExitCode.CONFIGURATION, "learning_rate"),
        ({"no_such_option": 1}, ExitCode.CONFIGURATION, "no_such_option"),
        ({"resume_from_checkpoint": "checkpoint-9"}, ExitCode.CONFIGURATION, "checkpoint-9"),
        ({"optimizer_config": "speed=1"}, ExitCode.CONFIGURATION, "speed"),
        ({"model": "/nowhere/at/all"}, ExitCode.CONFIGURATION, "/nowhere/at/all"),
        ({"minimum_image_size": 5_000}, ExitCode.DATA, "none of the 8 files"),
    ],
)
def test_an_error_ends_the_run_with_its_exit_code_and_its_name(tmp_path: Path, options: dict[str, Any], code: ExitCode, word: str) -> None:
    run = run_in_this_process(write_job(tmp_path, **options))
    assert run.code == code, run.log()
    report = run.report()
    assert report is not None and report.status == "error" and report.error_code and word in report.message
    (told,) = run.of_type("error")
    assert told.data["code"] == report.error_code and "Traceback" not in run.log()
    assert_numbered(run)


@pytest.mark.parametrize("content", [b"", b"{", b'{"protocol": 1}'])
def test_a_job_that_cannot_be_read_is_a_configuration_error(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path / "run").create()
    folder.job_file.write_bytes(content)
    assert run_in_this_process(folder).code == ExitCode.CONFIGURATION
    assert json.loads(folder.exit_file.read_bytes())["error_code"] == "invalid_options"


def test_a_job_of_another_protocol_is_refused(tmp_path: Path) -> None:
    folder = write_job(tmp_path)
    JobSpec.model_validate({**json.loads(folder.job_file.read_bytes()), "protocol": 99}).write(folder)
    assert run_in_this_process(folder).code == ExitCode.CONFIGURATION


def launched_ranks(place: Path, **options: Any) -> TinyRun:
    """Two processes that PyTorch's launcher starts, as a server does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    folder = write_job(place, train_batch_size=1, num_processes=2, **options)
    return start_run(folder, launcher=launcher, ACCELERATE_USE_CPU="true")


@pytest.mark.parametrize("start", [start_ranks, pytest.param(launched_ranks, marks=pytest.mark.slow)])
def test_two_processes_train_what_one_does_with_twice_the_batch(tmp_path: Path, start: Callable[..., TinyRun]) -> None:
    options = {"max_train_steps": 6, "gradient_accumulation_steps": 2, "caption_dropout_probability": 0.3}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), train_batch_size=2, **options)
    run = start(tmp_path, **options)
    assert run.wait() == 0, run.log()
    assert_numbered(run)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    one, two = load_file(alone.output_dir / "checkpoint-6" / weights), load_file(run.output_dir / "checkpoint-6" / weights)
    base = load_file(Path(JobSpec.read(run.folder).options["pretrained_model_name_or_path"]) / weights)
    moved = torch.cat([(one[name] - base[name]).flatten() for name in one]).norm()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert apart < 1e-3 * moved, (moved, apart)
    losses = [event.loss for event in alone.heard.of(ProgressEvent)]
    assert [entry.data["loss"] for entry in run.of_type(PROGRESS)] == pytest.approx(losses, rel=1e-5)
    report = run.report()
    assert report is not None and report.step == 6


def test_two_processes_stop_together(tmp_path: Path) -> None:
    run = start_ranks(tmp_path, max_train_steps=100_000)
    run.wait_for(PROGRESS)
    run.request(Command.STOP)
    run.wait(60)
    report = run.report()
    assert report is not None and report.exit_code == ExitCode.STOPPED and report.step == run.newest_checkpoint().step
    assert verify(run.newest_checkpoint().path) == []


@pytest.mark.faults
def test_wherever_a_run_is_killed_nothing_announced_is_lost(tmp_path: Path) -> None:
    options = {"max_train_steps": 10_000, "checkpoint_step_interval": 3, "checkpoints_total_limit": 2}
    for attempt in range(10):
        run = start_tiny_run(tmp_path, **options)
        run.wait_for(PROGRESS, count=len(run.of_type(PROGRESS)) + 1)
        time.sleep(0.037 * attempt)
        run.process.kill()
        run.wait()
        announced = [entry.extra["checkpoint"]["step"] for entry in run.of_type("training.checkpoint")]
        newest = newest_verified(run.output_dir)
        assert not announced or (newest is not None and newest.step >= announced[-1])
        assert_numbered(run)

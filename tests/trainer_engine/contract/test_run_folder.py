"""A run folder is written whole and read back the same."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer_engine.contract import commands
from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode, Level, Problem
from trainer_engine.contract.run import ExitReport, JobSpec, RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def test_a_job_is_read_as_it_was_written(folder: RunFolder) -> None:
    job = JobSpec(job_id="1", environment="x", options={"seed": 1, "learning_rate": 1e-4}, datasets=[{"id": "a"}])
    job.write(folder)
    assert JobSpec.read(folder) == job


def test_a_job_with_a_field_that_is_not_known_is_refused(folder: RunFolder) -> None:
    folder.job_file.write_text(json.dumps({"job_id": "1", "options": {}, "datasets": [], "shell": "rm"}))
    with pytest.raises(ValidationError):
        JobSpec.read(folder)


def test_a_run_that_has_not_ended_has_no_report(folder: RunFolder) -> None:
    assert ExitReport.read(folder) is None
    report = ExitReport(exit_code=ExitCode.STOPPED, status="stopped", step=3, finished_at="2026-01-01T00:00:00+00:00")
    report.write(folder)
    assert ExitReport.read(folder) == report


def test_commands_are_taken_once_in_order(folder: RunFolder) -> None:
    for command in (Command.CHECKPOINT, Command.CHECKPOINT, Command.STOP):
        commands.request(folder, command)
    assert commands.take(folder) == [Command.CHECKPOINT, Command.STOP]
    assert commands.take(folder) == []


def test_a_foreign_file_among_the_commands_is_left_alone(folder: RunFolder) -> None:
    (folder.commands / "notes.txt").write_text("mine")
    (folder.commands / "1-2-explode.command").write_text("")
    assert commands.take(folder) == []
    assert (folder.commands / "notes.txt").exists()


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    contents = [b"a" * 100_000, b"b" * 100_000]
    write_atomically(path, contents[0])
    seen: set[bytes] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(30):
        write_atomically(path, contents[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]
    assert path.read_bytes() == b"old"


def test_a_problem_shows_what_was_got_but_never_without_end() -> None:
    problem = Problem.error("seed", "wrong_type", "no", got="x" * 5000)
    assert problem.level is Level.ERROR
    assert len(problem.as_dict()["got"]) < 300
    assert set(problem.as_dict()) == {"option", "code", "message", "got", "expected", "hint"}

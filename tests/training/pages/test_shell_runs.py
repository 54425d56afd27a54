"""Runs of ``simpletuner train`` are in the list of runs, read from their folders."""

from __future__ import annotations

import os
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.helpers.jobs import make_job
from tests.training.pages.test_run_page import EVIL, Elements, progress
from trainer_engine.contract.events import encode
from trainer_engine.contract.run import ExitReport, JobSpec, RunFolder
from training.engine import process
from training.pages import shell_runs
from training.pages.shell_runs import shell_runs as listed

pytestmark = pytest.mark.django_db


@pytest.fixture
def state(home: Path, settings: Any) -> Path:
    settings.STATE_DIR = home / "state"
    return home / "state"


def shell_run(state: Path, *losses: float, environment: str = "cats", started: float = 1_700_000_000.0, **report: Any) -> RunFolder:
    folder = RunFolder(state / "runs" / str(uuid.uuid4())).create()
    JobSpec(job_id=folder.path.name, environment=environment, options={"seed": 7}, datasets=[]).write(folder)
    os.utime(folder.job_file, (started, started))
    lines = [encode(progress(step, loss), seq=step - 1) for step, loss in enumerate(losses, start=1)]
    folder.journal.write_text("".join(f"{line}\n" for line in lines))
    if report:
        ExitReport(**{"exit_code": 0, "finished_at": "2026-01-01T00:00:00Z", **report}).write(folder)
    return folder


def test_a_run_of_a_shell_is_listed_with_what_its_files_say(client: Client, state: Path, tmp_path: Path) -> None:
    make_job(tmp_path, environment="served", run_dir=str(state / "runs"))
    shell_run(state, 0.5, 0.25, status="completed", step=2)
    shell_run(state, environment=EVIL, started=1_800_000_000.0, status="error", exit_code=40, message=f"no memory {EVIL}")
    page = client.get("/").content.decode()
    Elements(page)
    part = page.split('data-part="elsewhere"')[1]
    assert "step 2 of 2,000 · loss 0.25" in part and "state completed" in part and "state error" in part and "no memory" in part
    assert part.index("state error") < part.index("state completed"), "the newest one first"
    assert "<script>alert" not in page and 'action="/runs' not in part, "to read only"
    assert 'data-part="elsewhere"' not in client.get("/?before=5").content.decode()


def test_a_run_without_a_report_runs_or_was_interrupted(state: Path) -> None:
    folder = shell_run(state, 0.5)
    assert [one.state for one in listed()] == ["interrupted"]
    command = [sys.executable, "-c", "import time; time.sleep(60)", "trainer_engine", str(folder.path)]
    identity = process.start(folder, command)
    try:
        assert [one.state for one in listed()] == ["running"]
    finally:
        process.kill(identity, folder)
        process.wait_until_gone(identity, folder, seconds=20)


def test_the_runs_of_the_server_are_not_listed_twice(client: Client, state: Path, tmp_path: Path) -> None:
    folder = shell_run(state, 0.5, status="completed")
    assert len(listed()) == 1
    make_job(tmp_path, id=uuid.UUID(folder.path.name), run_dir=str(folder.path))
    assert listed() == [] and 'data-part="elsewhere"' not in client.get("/").content.decode()


def test_odd_folders_and_broken_files_are_no_trouble(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed() == []
    (state / "runs").mkdir(parents=True, exist_ok=True)
    (state / "runs/notes").mkdir()
    (state / "runs" / str(uuid.uuid4())).mkdir()
    broken = shell_run(state, 0.5)
    broken.job_file.write_text("[1")
    broken.exit_file.write_text("{}")
    broken.journal.write_bytes(b"\0\xff\n{}\n" + broken.journal.read_bytes() + b"half a li")
    (found,) = listed()
    assert (found.environment, found.state, found.facts) == ("", "interrupted", "step 1 of 2,000 · loss 0.5")
    for number in range(4):
        shell_run(state, started=1_700_000_100.0 + number, environment=str(number), status="completed")
    monkeypatch.setattr(shell_runs, "SHOWN", 3)
    assert [one.environment for one in listed()] == ["", "3", "2"], "the broken one was written last"

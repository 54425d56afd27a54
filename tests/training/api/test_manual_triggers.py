"""Asking a run for a validation or a checkpoint over HTTP."""

from __future__ import annotations

import pytest

from tests.helpers.jobs import make_job
from tests.training.conftest import Training
from trainer_engine.contract import commands
from trainer_engine.contract.commands import Command
from training.models import Status

CALLS = [("validation", "Validation", Command.VALIDATE), ("checkpoint", "Checkpoint", Command.CHECKPOINT)]


@pytest.mark.parametrize(("path", "word", "command"), CALLS)
@pytest.mark.parametrize("status", [Status.STARTING, Status.RUNNING])
def test_the_run_is_asked_once_however_often_it_is_sent(training: Training, path: str, word: str, command: Command, status: Status) -> None:
    job = make_job(training.home, status)
    for _ in range(2):
        answer = training.client.post(f"/api/training/{path}/run")
        assert answer.status_code == 200
        assert answer.json() == {"message": f"{word} queued for the next gradient sync.", "job_id": str(job.pk)}
    assert commands.take(job.folder) == [command]


@pytest.mark.parametrize("path", ["validation", "checkpoint"])
@pytest.mark.parametrize("status", [None, Status.STOPPING, Status.COMPLETED, Status.ERROR])
def test_nothing_is_asked_where_nothing_trains(training: Training, path: str, status: Status | None) -> None:
    job = make_job(training.home, status) if status else None
    answer = training.client.post(f"/api/training/{path}/run")
    assert answer.status_code == 400
    assert answer.json()["detail"] == "No active training job"
    assert job is None or not commands.take(job.folder)


def test_a_run_that_a_worker_is_about_to_take_is_asked_too_and_one_that_waits_for_another_is_not(training: Training) -> None:
    job = make_job(training.home, Status.QUEUED)
    assert training.client.post("/api/training/checkpoint/run").json()["job_id"] == str(job.pk)
    assert commands.take(job.folder) == [Command.CHECKPOINT]
    make_job(training.home, Status.STOPPING)
    assert training.post("/checkpoint/run", {"job_id": str(job.pk)}).status_code == 400
    assert commands.take(job.folder) == []


def test_a_job_can_be_named(training: Training) -> None:
    first, second = make_job(training.home, Status.RUNNING), make_job(training.home, Status.RUNNING)
    assert training.post("/checkpoint/run", {"job_id": str(first.pk)}).json()["job_id"] == str(first.pk)
    assert commands.take(first.folder) == [Command.CHECKPOINT]
    assert commands.take(second.folder) == []
    assert training.post("/validation/run", {"job_id": "nobody"}).status_code == 404

"""Starting, stopping and cancelling: what each does in each state, and what two of them do at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django_q.models import OrmQ

from environments import services as environments
from environments.create.plan import NewEnvironment
from environments.models import Environment
from tests.helpers.jobs import leased_job, make_job, start_fake
from tests.helpers.races import at_once
from tests.training.conftest import Training
from trainer_engine.contract import commands
from trainer_engine.contract.commands import Command
from training import services
from training.engine import process
from training.errors import CannotStart, NoActiveJob, NotWritten
from training.jobs.follower import Follower
from training.models import ACTIVE, TERMINAL, Event, Job, Status

pytestmark = pytest.mark.django_db(transaction=True)


def form(training: Training, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in training.form.items() if not name.startswith("__")} | changes


@pytest.mark.parametrize("status", Status)
def test_a_stop_does_what_the_state_allows(tmp_path: Path, status: Status) -> None:
    job = make_job(tmp_path, status)
    job.folder.create()
    after = services.stop_training(job)
    expected = {Status.QUEUED: Status.CANCELLED, Status.STARTING: Status.STOPPING, Status.RUNNING: Status.STOPPING}
    assert after.status == expected.get(status, status)
    assert (Command.STOP in commands.take(after.folder)) is (status in (Status.STARTING, Status.RUNNING))
    assert (after.stop_requested_at is not None) is (status in (Status.STARTING, Status.RUNNING))
    assert services.stop_training(after).status == after.status, "a second stop changes nothing"
    assert Event.objects.filter(job=job).count() == (1 if status in expected else 0)


@pytest.mark.parametrize("status", Status)
def test_a_cancel_ends_every_job_that_has_not_ended(tmp_path: Path, status: Status) -> None:
    job = make_job(tmp_path, status)
    assert services.cancel_training(job) is (status not in TERMINAL)
    job.refresh_from_db()
    assert job.status == (status if status in TERMINAL else Status.CANCELLED)
    assert not services.cancel_training(job)


def test_a_cancel_kills_the_engine_before_its_slot_is_free(tmp_path: Path) -> None:
    job = leased_job(tmp_path, status=Status.RUNNING)
    identity = start_fake(job, "deaf", steps=1_000, seconds=0.05)
    assert services.cancel_training(job)
    assert not process.is_alive(identity)
    job.refresh_from_db()
    assert (job.engine_pid, job.lease_owner) == (None, "")


@pytest.mark.parametrize("status", Status)
def test_a_command_reaches_a_run_that_trains_or_is_about_to(tmp_path: Path, status: Status, settings: Any) -> None:
    settings.SLOTS = 1
    job = make_job(tmp_path, status)
    job.folder.create()
    if status in (Status.STARTING, Status.RUNNING, Status.QUEUED):
        assert services.request_command(job, Command.CHECKPOINT) == job
        assert commands.take(job.folder) == [Command.CHECKPOINT]
    else:
        with pytest.raises(NoActiveJob):
            services.request_command(job, Command.CHECKPOINT)
    with pytest.raises(NoActiveJob):
        services.request_command(None, Command.CHECKPOINT)


def test_a_command_to_a_job_that_waits_behind_another_is_refused(tmp_path: Path, settings: Any) -> None:
    settings.SLOTS = 1
    make_job(tmp_path, Status.RUNNING)
    with pytest.raises(NoActiveJob):
        services.request_command(make_job(tmp_path), Command.VALIDATE)


def test_a_refused_start_leaves_no_trace(training: Training) -> None:
    before = sorted(str(path) for path in training.home.rglob("*"))
    with pytest.raises(CannotStart) as refusal:
        services.start_training(form(training, **{"--learning_rate": "many", "--optimizer": "adam?"}))
    assert {problem.option for problem in refusal.value.problems} >= {"learning_rate", "optimizer"}
    assert not Job.objects.exists() and not Environment.objects.exists() and not OrmQ.objects.exists()
    assert sorted(str(path) for path in training.home.rglob("*")) == before


def test_a_start_whose_files_cannot_be_written_is_no_job(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("environments.writing.write_config", full)
    answer = training.post("/start", training.form)
    assert answer.status_code == 409 and "No space left" in answer.json()["detail"]
    assert not Job.objects.exists() and not Event.objects.exists() and not OrmQ.objects.exists()


def test_problems_of_a_broken_environment_file_keep_a_run_from_starting(training: Training) -> None:
    environments.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")
    environments.update_environment("demo", config=form(training), actor="test")
    environments.activate("demo", actor="test")
    assert not services.check({}).errors
    path = training.home / "config/demo/config.json"
    path.write_text(path.read_text().replace('"--seed": 7', '"--seed": "many"'))
    report = services.check({"--seed": "8"})
    assert [problem.option for problem in report.errors] == ["seed"], "the form does not hide what is wrong in the file"
    path.write_text("{")
    assert ["config/demo/config.json" in problem.message for problem in services.check({}).errors] == [True]


def test_two_starts_at_once_get_two_numbers_and_one_environment(training: Training, settings: Any) -> None:
    settings.SLOTS = 1
    environments.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")
    environments.update_environment("demo", config=form(training), actor="test")
    demo = environments.find("demo")
    steps = ("11", "12", "13")
    started = at_once(*(lambda count=count: services.start_training({"--max_train_steps": count}, environment=demo) for count in steps))
    jobs = [one.job for one in started]
    assert sorted(job.number for job in jobs) == [1, 2, 3]
    assert sorted(job.options["max_train_steps"] for job in jobs) == [11, 12, 13]
    stored = json.loads((training.home / "config/demo/config.json").read_text())["--max_train_steps"]
    assert stored == Job.objects.get(number=3).options["max_train_steps"], "the last start decides what the environment holds"


def test_a_start_of_a_deleted_environment_is_refused(training: Training) -> None:
    environments.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")
    row, _ = environments.update_environment("demo", config=form(training), actor="test")
    environments.delete_environment("demo", actor="test")
    (started,) = at_once(lambda: services.start_training({}, environment=row))
    assert getattr(started, "status_code", None) == 404 and not Job.objects.exists()


def test_a_stop_and_a_claim_at_once_lose_no_job(tmp_path: Path) -> None:
    """Either the job leaves the queue, or it starts and is asked to stop; it never runs on unasked."""
    from training.jobs import queue

    for _ in range(6):
        job = make_job(tmp_path)
        stopped, claimed = at_once(lambda job=job: services.stop_training(job), lambda: queue.claim_next("me"))
        job.refresh_from_db()
        if claimed is None:
            assert job.status == Status.CANCELLED
        else:
            assert job.status == Status.STOPPING and Command.STOP in commands.take(job.folder)
        assert stopped.status == job.status
        Job.objects.all().delete()


def test_a_run_that_is_cancelled_while_its_engine_starts_leaves_no_engine(tmp_path: Path) -> None:
    job = leased_job(tmp_path)
    identity = start_fake(job, "deaf", steps=1_000, seconds=0.05, note=False)
    Job.objects.filter(pk=job.pk).update(status=Status.CANCELLED, lease_owner="")
    Follower(job, "me").follow(5)
    assert process.wait_until_gone(identity, job.folder, seconds=5)
    job.refresh_from_db()
    assert (job.status, job.engine_pid) == (Status.CANCELLED, None)


def test_an_engine_that_cannot_be_started_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    """A run folder below a file, and an accelerate file that went after the check."""
    (tmp_path / "runs").write_text("a file")
    job = leased_job(tmp_path)
    Follower(job, "me").follow(5)
    job.refresh_from_db()
    assert (job.status, job.error_code) == (Status.ERROR, "launch_failed") and "Not a directory" in job.message
    (tmp_path / "runs").unlink()
    gone = leased_job(tmp_path, launch={"accelerate_config": str(tmp_path / "gone.yaml")})
    Follower(gone, "me").follow(5)
    gone.refresh_from_db()
    assert (gone.status, gone.error_code) == (Status.ERROR, "launch_failed") and "gone.yaml" in gone.message
    assert all(job.finished_at and job.status not in ACTIVE for job in Job.objects.all())


def test_a_stop_on_a_full_disk_is_a_signal_all_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(home, Status.RUNNING, engine_pid=12345, engine_started_at=1, engine_boot_id="x")
    asked: list[object] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.services.commands.request", full)
    monkeypatch.setattr("training.services.process.ask_to_end", lambda engine, folder: asked.append(engine))
    assert services.stop_training(job).status == Status.STOPPING and len(asked) == 1
    with pytest.raises(NotWritten):
        services.request_command(make_job(home, Status.RUNNING), Command.VALIDATE)

"""A database of an older version keeps its jobs, and the newest migration says what the models say."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.recorder import MigrationRecorder
from django.test.utils import CaptureQueriesContext

from environments.models import Environment, Revision
from tests.helpers.jobs import make_job
from training.engine.launcher import LaunchSettings
from training.jobs import queue
from training.models import Checkpoint, Event, Job, QueueLock, Status, WebhookChannel

NEWEST = ("training", "0006_job_turn")


def migrate(name: str) -> Any:
    """The models as they are at a migration."""
    executor = MigrationExecutor(connection)
    return executor.migrate([("training", name)]).apps


@pytest.fixture
def back_to_the_newest(transactional_db: None) -> Iterator[None]:
    yield
    migrate(NEWEST[1])


def old_job(apps: Any, number: int, **values: Any) -> uuid.UUID:
    options = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "/out", "data_backend_config": "/x.json"}
    options |= {"max_train_steps": 5, **values.pop("options", {})}
    usual = {"number": number, "status": "queued", "output_dir": f"/out/{number}", "run_dir": f"/runs/{number}"}
    job = apps.get_model("training", "Job").objects.create(**{**usual, "options": options, **values})
    found: uuid.UUID = job.pk
    return found


def test_a_job_that_waited_while_the_server_was_updated_keeps_its_processes(back_to_the_newest: None) -> None:
    apps = migrate("0003_queue_lock")
    waiting = old_job(apps, 1, options={"num_processes": 3, "num_train_epochs": 0})
    ended = old_job(apps, 2, status="completed", options={"num_processes": 3})
    unreadable = old_job(apps, 3, options={"num_processes": "many", "model_family": "nothing"})
    migrate(NEWEST[1])
    assert LaunchSettings.from_dict(Job.objects.get(pk=waiting).launch).num_processes == 3
    for pk in (ended, unreadable):
        assert LaunchSettings.from_dict(Job.objects.get(pk=pk).launch) == LaunchSettings()
    assert [job.number for job in queue.waiting()] == [1, 3]


def test_the_lock_of_an_older_version_is_the_lock_of_this_one(back_to_the_newest: None) -> None:
    apps = migrate("0002_webhooks")
    apps.get_model("training", "Desk").objects.create(pk=queue.LOCK_ID)
    migrate(NEWEST[1])
    with transaction.atomic():
        queue.lock()
    assert QueueLock.objects.count() == 1


def test_going_back_and_forth_loses_no_row(back_to_the_newest: None, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING, launch={"num_processes": 2}, lease_owner="me")
    Event.objects.create(job=job, index=0, type="notification", timestamp="2026-01-01T00:00:00+00:00", payload={"title": "é"})
    WebhookChannel.objects.create(job=job, place=0, target={"kind": "raw"})
    migrate("0002_webhooks")
    migrate(NEWEST[1])
    again = Job.objects.get()
    assert (again.pk, again.status, again.lease_owner, again.launch) == (job.pk, Status.RUNNING, "me", {})
    assert again.turn == again.number
    assert Event.objects.get().payload == {"title": "é"} and WebhookChannel.objects.get().target == {"kind": "raw"}


@pytest.mark.django_db
def test_an_applied_migration_of_a_newer_version_does_not_stop_this_one() -> None:
    """Somebody went back to an older release: its checks ask for what it knows, not for equality."""
    from simpletuner_site.server.migrations_state import migrate_if_needed

    MigrationRecorder(connection).record_applied("training", "0099_of_the_future")
    assert migrate_if_needed() is False


@pytest.mark.django_db
@pytest.mark.parametrize(
    "twice",
    [
        lambda job: Event.objects.create(job=job, index=0, type="a", timestamp="t"),
        lambda job: Event.objects.create(job=job, index=uuid.uuid4().int % 2**31, seq=5, type="a", timestamp="t"),
        lambda job: Checkpoint.objects.create(job=job, name="checkpoint-5", path="/x", step=5),
        lambda job: WebhookChannel.objects.create(job=job, place=0),
        lambda job: Job.objects.create(number=900, output_dir="", run_dir=""),
        lambda job: Job.objects.create(number=uuid.uuid4().int % 2**31, output_dir="", run_dir="", idempotency_key="k"),
        lambda job: Environment.objects.create(name=uuid.uuid4().hex, is_active=True),
        lambda job: Environment.objects.create(name="demo"),
        lambda job: Revision.objects.create(environment_name="demo", number=1, action="created", actor="api"),
    ],
    ids=["index", "journal line", "checkpoint", "target", "number", "key", "active", "name", "revision"],
)
def test_the_database_itself_refuses_what_must_be_unique(tmp_path: Path, twice: Any) -> None:
    """Whatever code runs beside it, or ran before it."""
    job = make_job(tmp_path)
    twice(job)
    with pytest.raises(IntegrityError), transaction.atomic():
        twice(job)


@pytest.mark.django_db
def test_claiming_a_job_asks_an_index_and_not_every_job(tmp_path: Path, settings: Any) -> None:
    for status in (*[Status.COMPLETED] * 20, Status.QUEUED):
        make_job(tmp_path, status)
    with CaptureQueriesContext(connection) as asked:
        assert queue.claim_next("me") is not None
    with connection.cursor() as cursor:
        chosen = next(query["sql"] for query in asked if "ORDER BY" in query["sql"] and '"status" = ' in query["sql"])
        cursor.execute(f"EXPLAIN QUERY PLAN {chosen}")
        plan = " ".join(str(row) for row in cursor.fetchall())
    assert "job_status_turn" in plan, plan

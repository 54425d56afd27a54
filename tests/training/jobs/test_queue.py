"""Many hands at one queue: exactly as many runs as slots, first come first served, and each task harmless when delivered twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from tests.helpers.jobs import leased_job, make_job, start_fake
from tests.training.conftest import Training
from trainer_engine.contract.events import Notification, encode
from training import tasks
from training.engine.journal import read_entries
from training.jobs import leases, queue, reconciler
from training.jobs.ingest import ingest
from training.models import Event, Job, QueueLock, Status

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(count: int, do: Callable[[int], object]) -> list[Any]:
    """What ``do`` gives when that many threads call it at the same moment."""
    gate = threading.Barrier(count)
    results: list[Any] = [None] * count

    def call(number: int) -> None:
        gate.wait()
        results[number] = do(number)
        connection.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("slots", [1, 3])
def test_however_many_ask_only_slots_jobs_are_claimed_and_the_oldest_ones(tmp_path: Path, settings: Any, slots: int) -> None:
    settings.SLOTS = slots
    jobs = [make_job(tmp_path) for _ in range(6)]
    claimed = [job for job in at_once(12, lambda number: queue.claim_next(f"owner {number}")) if job]
    assert sorted(job.pk for job in claimed) == sorted(job.pk for job in jobs[:slots])
    assert Job.objects.filter(status=Status.STARTING).count() == slots
    assert [queue.position(job) for job in queue.waiting()] == list(range(1, 7 - slots))


def test_fifty_starts_at_once_make_fifty_jobs_in_one_line(training: Training, settings: Any) -> None:
    settings.SLOTS = 2
    answers = at_once(50, lambda _: APIClient().post("/api/training/start", training.form, HTTP_ACCEPT="application/json"))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(Job.objects.values_list("number", flat=True)) == list(range(1, 51))
    assert [queue.position(job) for job in queue.waiting()] == [None, None, *range(1, 49)]


def test_one_key_at_once_makes_one_job(training: Training) -> None:
    answers = at_once(
        8, lambda _: APIClient().post("/api/training/start", training.form, HTTP_ACCEPT="application/json", HTTP_IDEMPOTENCY_KEY="k")
    )
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert Job.objects.count() == 1


def test_two_runs_never_write_to_one_folder_at_once(tmp_path: Path, settings: Any) -> None:
    settings.SLOTS = 2
    first, second, third = (make_job(tmp_path, output_dir=str(tmp_path / name)) for name in ("a", "a", "b"))
    assert [getattr(queue.claim_next(owner), "pk", None) for owner in "xyz"] == [first.pk, third.pk, None]
    Job.objects.filter(pk=first.pk).update(status=Status.COMPLETED)
    claimed = queue.claim_next("x")
    assert claimed is not None and claimed.pk == second.pk


def test_a_lease_is_held_by_one_until_it_is_offered(tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    assert sum(at_once(8, lambda number: leases.claim(job.pk, f"owner {number}"))) == 1
    owner = Job.objects.get(pk=job.pk).lease_owner
    assert leases.renew(job.pk, owner) and not leases.claim(job.pk, "other")
    assert leases.offer(job.pk, owner) and leases.renew(job.pk, owner)
    assert leases.offer(job.pk, owner) and leases.claim(job.pk, "other")
    assert not leases.renew(job.pk, owner)


def test_a_line_enters_the_log_once_however_often_it_is_read(tmp_path: Path) -> None:
    job = leased_job(tmp_path, status=Status.RUNNING)
    job.folder.create()
    lines = [encode(Notification(message=str(seq)), seq=seq) for seq in (0, 1, 1, 2)]
    job.folder.journal.write_text("\n".join(lines) + "\n")
    reading = read_entries(job.folder.journal, 0)
    assert sum(at_once(6, lambda _: ingest(job.pk, "me", 0, reading))) == 1
    assert not ingest(job.pk, "somebody else", reading.offset, reading)
    assert list(Event.objects.order_by("index").values_list("index", "seq")) == [(0, 0), (1, 1), (2, 2)]
    job.refresh_from_db()
    assert (job.next_index, job.journal_seq, job.journal_offset) == (3, 2, reading.offset)


def test_a_line_that_cannot_be_read_is_reported_in_the_log(tmp_path: Path) -> None:
    job = leased_job(tmp_path, status=Status.RUNNING)
    job.folder.create()
    job.folder.journal.write_text("{broken\n")
    assert ingest(job.pk, "me", 0, read_entries(job.folder.journal, 0))
    event = Event.objects.get()
    assert (event.severity, event.payload["data"]["code"]) == ("warning", "broken_journal_line")


def test_a_task_delivered_twice_does_nothing_twice(tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    start_fake(job, steps=30, seconds=0.02)
    results = at_once(3, lambda _: tasks.follow_job(str(job.pk)))
    assert sorted(results) == sorted([str(job.pk), "not needed", "not needed"])
    job.refresh_from_db()
    assert job.status == Status.COMPLETED
    assert job.events.filter(type="training.progress").count() == 30
    assert tasks.follow_job(str(job.pk)) == "not needed"
    assert tasks.run_job() == "nothing to run"


def test_only_one_reconciler_looks_at_a_time() -> None:
    QueueLock.objects.get_or_create(pk=queue.LOCK_ID)
    assert sum(at_once(6, lambda _: queue.reconcile_is_due(reconciler.INTERVAL))) == 1
    time.sleep(0.01)
    assert not queue.reconcile_is_due(reconciler.INTERVAL)
    assert reconciler.reconcile() == 0


def test_the_history_asks_as_little_for_many_waiting_jobs_as_for_one(tmp_path: Path, settings: Any, django_assert_num_queries: Any) -> None:
    settings.SLOTS = 2
    make_job(tmp_path, Status.RUNNING)
    jobs = [make_job(tmp_path) for _ in range(20)]
    assert list(queue.positions().items()) == [(job.pk, place) for place, job in enumerate(jobs[1:], start=1)]
    assert [queue.position(job) for job in jobs] == [queue.positions().get(job.pk) for job in jobs]
    for address, queries in (("jobs", 4), ("queue", 6)):
        with django_assert_num_queries(queries):
            answer = APIClient().get(f"/api/training/{address}", HTTP_HOST="localhost").json()
    assert [row["queue_position"] for row in answer["queued"]] == [None, *range(1, 20)]
    assert [row["queue_position"] for row in answer["running"]] == [None]


def test_two_long_keys_that_begin_alike_are_two_jobs(training: Training) -> None:
    """A column holds 255 characters of a key; a second run must not be taken for the first because of that."""
    keys = [f"{'k' * 255}{end}" for end in ("", "a", "b")]
    jobs = [training.post("/start", training.form, HTTP_IDEMPOTENCY_KEY=key).json()["job_id"] for key in [*keys, *keys]]
    assert len(set(jobs)) == 3 and jobs[:3] == jobs[3:]

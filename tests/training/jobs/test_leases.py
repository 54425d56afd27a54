"""One run has one follower, whatever followers and reconcilers do, and whatever the clock does to them."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.utils import timezone
from django_q.models import OrmQ
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.jobs import make_job, start_fake
from training.jobs import leases, queue, reconciler
from training.models import Job, QueueLock, Status

OWNERS = ("one", "two", "three")
STEP = st.tuples(st.sampled_from(["claim", "renew", "offer", "release", "expire", "clock set back"]), st.sampled_from(OWNERS))


@pytest.mark.django_db
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=14))
def test_a_lease_behaves_as_its_model_for_every_order_of_steps(tmp_path: Path, steps: list[tuple[str, str]]) -> None:
    """The model: a holder, and whether another may take over. A former holder never gets anything done."""
    job = make_job(tmp_path, Status.RUNNING)
    holder, is_free = "", True
    row = Job.objects.filter(pk=job.pk)
    for step, owner in steps:
        if step == "claim":
            assert leases.claim(job.pk, owner) is is_free
            holder, is_free = (owner, False) if is_free else (holder, False)
        elif step == "renew":
            assert leases.renew(job.pk, owner) is (owner == holder)
            is_free = is_free and owner != holder
        elif step == "offer":
            assert leases.offer(job.pk, owner) is (owner == holder)
            is_free = is_free or owner == holder
        elif step == "release":
            leases.release(job.pk, owner)
            holder, is_free = ("", True) if owner == holder else (holder, is_free)
        elif step == "expire" and holder:
            row.update(lease_until=timezone.now() - timedelta(seconds=1))
            is_free = True
        elif holder:  # the lease was written by a clock that was a day ahead
            row.update(lease_until=timezone.now() + timedelta(days=1))
            is_free = True
        assert row.get().lease_owner == holder
        assert (job.pk in queue.unattended()) is is_free
    Job.objects.all().delete()


@pytest.mark.django_db
@pytest.mark.parametrize("status", [Status.QUEUED, Status.COMPLETED, Status.CANCELLED, Status.ERROR])
def test_only_an_active_run_can_be_followed(tmp_path: Path, status: Status) -> None:
    job = make_job(tmp_path, status)
    assert not leases.claim(job.pk, "me") and job.pk not in queue.unattended()
    Job.objects.filter(pk=job.pk).update(lease_owner="me", lease_until=timezone.now() + leases.LEASE)
    assert not leases.renew(job.pk, "me") and not leases.offer(job.pk, "me")


@pytest.mark.django_db
def test_reconciling_has_each_unattended_run_followed_once(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, Status.RUNNING) for _ in range(3)]
    assert leases.claim(jobs[0].pk, "me")
    make_job(tmp_path, Status.COMPLETED)
    assert reconciler.reconcile() == 2
    asked = [task.task["args"] for task in OrmQ.objects.all()]
    assert sorted(asked) == sorted((str(job.pk),) for job in jobs[1:])


@pytest.mark.django_db(transaction=True)
def test_reconciling_frees_the_slot_of_a_cancelled_run_whose_process_is_gone(tmp_path: Path, settings: Any) -> None:
    settings.SLOTS = 1
    job, waiting = make_job(tmp_path, Status.RUNNING), make_job(tmp_path)
    start_fake(job, "deaf", steps=1_000, seconds=0.05)
    Job.objects.filter(pk=job.pk).update(status=Status.CANCELLED)
    assert queue.claim_next("me") is None, "the device is busy as long as the process lives"
    reconciler.reconcile()
    claimed = queue.claim_next("me")
    assert claimed is not None and claimed.pk == waiting.pk


@pytest.mark.django_db
def test_a_reconciler_whose_clock_was_set_back_reconciles_again() -> None:
    QueueLock.objects.create(pk=queue.LOCK_ID, looked_at=timezone.now() + timedelta(hours=1))
    assert queue.reconcile_is_due(reconciler.INTERVAL) and not queue.reconcile_is_due(reconciler.INTERVAL)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.django_db(transaction=True)
def test_the_reconciler_goes_on_after_a_database_that_did_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread lives as long as its worker: an exception that ends it would leave runs alone for ever."""
    make_job(tmp_path, Status.RUNNING)
    reconciled, broken = threading.Event(), threading.Event()

    def is_due(interval: timedelta) -> bool:
        if not broken.is_set():
            broken.set()
            raise DatabaseError("database is locked")
        return True

    def reconcile() -> int:
        connection.close()
        reconciled.set()
        raise SystemExit  # ends this thread quietly

    monkeypatch.setattr(queue, "reconcile_is_due", is_due)
    monkeypatch.setattr(reconciler, "reconcile", reconcile)
    monkeypatch.setattr(reconciler, "INTERVAL", timedelta(milliseconds=300))
    reconciler.begin_in_worker()
    assert reconciled.wait(20)

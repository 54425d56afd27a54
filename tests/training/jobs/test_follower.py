"""Following real processes: what they write enters the log once, and how they end is how the job ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.utils import timezone

from tests.helpers.jobs import leased_job, make_job, start_fake, statuses
from training.engine import process
from training.jobs import follower, leases, queue, reconciler
from training.jobs.follower import Follower
from training.models import Job, Status
from training.services import cancel_training, stop_training

pytestmark = pytest.mark.django_db(transaction=True)


def follow(job: Job, owner: str = "me", seconds: float = 20.0) -> Job:
    Follower(job, owner).follow(seconds)
    return Job.objects.get(pk=job.pk)


def wait_for_steps(job: Job) -> None:
    """Until the engine trains: before that it has not said what SIGTERM means to it."""
    deadline = time.monotonic() + 20
    while not job.folder.journal.exists() or b"training.progress" not in job.folder.journal.read_bytes():
        assert time.monotonic() < deadline, job.folder.log.read_text()
        time.sleep(0.02)


def indexes(job: Job) -> list[int]:
    return list(job.events.order_by("index").values_list("index", flat=True))


def test_a_run_that_completes_is_logged_from_start_to_end(tmp_path: Path) -> None:
    job = leased_job(tmp_path)
    start_fake(job, steps=4)
    job = follow(job)
    assert (job.status, job.engine_pid, job.lease_owner) == (Status.COMPLETED, None, "")
    assert indexes(job) == list(range(job.next_index))
    assert statuses(job) == ["running", "completed"]
    assert job.events.last().payload["data"]["status"] == "completed"
    assert job.events.filter(type="training.progress").count() == 4
    assert job.progress["step"] == 4 and job.finished_at is not None
    assert job.startup["init_vae_cache"] == {
        "label": "Caching image latents",
        "progress_type": "counted",
        "status": "completed",
        "percent": 100.0,
        "current": 2,
        "total": 2,
    }
    assert job.checkpoints.get().name == job.checkpoint == "checkpoint-4"
    assert "training" in job.folder.log.read_text()


def test_an_engine_that_was_killed_is_noticed_and_the_reason_is_reported(tmp_path: Path) -> None:
    job = leased_job(tmp_path)
    start_fake(job, "dies")
    begun = time.monotonic()
    job = follow(job)
    assert time.monotonic() - begun < 5
    assert (job.status, job.error_code) == (Status.ERROR, "interrupted")
    assert "SIGKILL" in job.message and "no checkpoint" in job.message
    assert job.progress["step"] == 3
    last = list(job.events.order_by("index"))[-2:]
    assert [event.type for event in last] == ["error", "training.status"]
    assert last[0].payload["data"]["code"] == "interrupted" and last[0].severity == "error"


def test_an_engine_that_says_why_it_failed_is_believed(tmp_path: Path) -> None:
    job = leased_job(tmp_path)
    start_fake(job, "fails")
    job = follow(job)
    assert (job.status, job.error_code, job.hint) == (Status.ERROR, "out_of_memory", "smaller batch")
    assert job.events.filter(type="error").count() == 1


@pytest.mark.parametrize(("behaviour", "message"), [("fails_unreported", "The disk is full."), ("fails_mute", "could not write to a disk")])
def test_a_job_whose_engine_could_not_write_its_report_says_what_else_is_known(tmp_path: Path, behaviour: str, message: str) -> None:
    job = leased_job(tmp_path)
    start_fake(job, behaviour)
    job.folder.reserve.touch()
    job = follow(job)
    assert (job.status, job.error_code) == (Status.ERROR, "disk_full")
    assert message in job.message and job.hint
    assert job.events.filter(type="error").count() == 1
    assert not job.folder.reserve.exists(), "an engine that is gone needs no reserve"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_run_that_completed_and_could_not_write_its_report_has_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    job = leased_job(tmp_path)
    start_fake(job, "completes_unreported")
    if is_restarted:  # another server's engine: how its process ended is not known
        monkeypatch.setattr(process, "CHILDREN", [])
    job = follow(job)
    assert (job.status, job.error_code) == (Status.COMPLETED, "")
    assert "could not be written" in job.message


def test_an_exit_code_is_known_after_the_process_was_buried(tmp_path: Path) -> None:
    job = leased_job(tmp_path)
    identity = start_fake(job, "fails_mute")
    deadline = time.monotonic() + 20
    while process.is_alive(identity) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.reap_children()
    assert process.exit_status(identity) == 60


def test_a_stop_saves_and_ends_stopped(tmp_path: Path) -> None:
    job = leased_job(tmp_path, status=Status.RUNNING)
    start_fake(job, steps=10_000)
    wait_for_steps(job)
    stopping = stop_training(job)
    assert stopping.status == Status.STOPPING
    assert stop_training(stopping).status == Status.STOPPING
    job = follow(Job.objects.get(pk=job.pk))
    assert job.status == Status.STOPPED
    assert statuses(job)[-2:] == ["stopping", "stopped"]
    assert statuses(job).count("stopping") == 1


def test_an_engine_that_ignores_a_stop_is_killed_after_the_grace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "STOP_GRACE", timedelta(seconds=0.5))
    job = leased_job(tmp_path, status=Status.RUNNING)
    identity = start_fake(job, "deaf", steps=10_000)
    wait_for_steps(job)
    stop_training(job)
    job = follow(Job.objects.get(pk=job.pk))
    assert (job.status, job.error_code) == (Status.ERROR, "stop_timeout")
    assert not process.is_alive(identity)


def test_a_process_that_stays_after_its_last_event_does_not_hold_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "EXIT_GRACE_SECONDS", 0.4)
    job = leased_job(tmp_path)
    identity = start_fake(job, "lingers", steps=2)
    assert follow(job).status == Status.COMPLETED
    assert not process.is_alive(identity)


def test_a_cancelled_run_is_gone_at_once_and_its_follower_lets_go(tmp_path: Path) -> None:
    job = leased_job(tmp_path, status=Status.RUNNING)
    identity = start_fake(job, steps=10_000)

    def cancel() -> None:
        time.sleep(0.5)
        assert cancel_training(Job.objects.get(pk=job.pk))
        assert not cancel_training(Job.objects.get(pk=job.pk))
        connection.close()

    other = threading.Thread(target=cancel)
    other.start()
    job = follow(job)
    other.join()
    job.refresh_from_db()
    assert (job.status, job.engine_pid) == (Status.CANCELLED, None)
    assert not process.is_alive(identity)
    assert statuses(job)[-1] == "cancelled" and indexes(job) == list(range(job.next_index))


def test_the_next_follower_continues_at_the_byte_without_gap_or_doubling(tmp_path: Path) -> None:
    job = leased_job(tmp_path, owner="first")
    start_fake(job, steps=60, seconds=0.02)
    handed_over = threading.Event()

    def second() -> None:
        handed_over.wait(10)
        while not leases.claim(job.pk, "second"):
            time.sleep(0.01)
        Follower(Job.objects.get(pk=job.pk), "second").follow(20)
        connection.close()

    thread = threading.Thread(target=second)
    thread.start()
    threading.Timer(0.2, handed_over.set).start()
    Follower(job, "first").follow(0.3)
    thread.join()
    job.refresh_from_db()
    assert job.status == Status.COMPLETED
    steps = [event.payload["data"]["step"] for event in job.events.filter(type="training.progress").order_by("index")]
    assert steps == list(range(1, 61))
    assert indexes(job) == list(range(job.next_index))


def test_a_run_whose_starter_died_before_noting_the_process_is_adopted(tmp_path: Path) -> None:
    job = leased_job(tmp_path)
    identity = start_fake(job, steps=30, seconds=0.02, note=False)
    wait_for_steps(job)
    job = follow(job)
    assert job.status == Status.COMPLETED and job.engine_pid is None
    assert not process.is_alive(identity)


def test_a_run_whose_process_died_unnoted_ends_interrupted(tmp_path: Path) -> None:
    job = leased_job(tmp_path)
    identity = start_fake(job, steps=10_000, note=False)
    wait_for_steps(job)
    os.killpg(identity.pid, signal.SIGKILL)
    process.wait_until_gone(identity, job.folder, seconds=2)
    assert follow(job).error_code == "interrupted"


def test_a_stop_before_the_engine_was_started_ends_without_starting_it(tmp_path: Path) -> None:
    job = leased_job(tmp_path, status=Status.STOPPING, stop_requested_at=timezone.now())
    job = follow(job)
    assert job.status == Status.STOPPED and not job.folder.log.exists()


def test_options_that_are_none_end_the_job_with_the_reason(tmp_path: Path) -> None:
    job = follow(leased_job(tmp_path, options={"no_such_option": 1}))
    assert (job.status, job.error_code) == (Status.ERROR, "invalid_options")
    assert "no_such_option" in job.message


def test_an_unattended_run_is_found_and_its_slot_comes_free(tmp_path: Path) -> None:
    alone = make_job(tmp_path, Status.RUNNING)
    assert queue.unattended() == [alone.pk]
    assert reconciler.reconcile() == 1
    assert leases.claim(alone.pk, "me")
    assert reconciler.reconcile() == 0


def test_a_lease_from_before_the_clock_was_set_back_does_not_hold(tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING, lease_owner="old", lease_until=timezone.now() + timedelta(days=1))
    assert leases.claim(job.pk, "new")
    assert not leases.renew(job.pk, "old")


def test_a_terminal_job_whose_process_lives_is_cleaned_up_before_its_slot_is_given_away(tmp_path: Path, settings: object) -> None:
    settings.SLOTS = 1  # type: ignore[attr-defined]
    ended = make_job(tmp_path, Status.CANCELLED)
    identity = start_fake(ended, "deaf", steps=10_000)
    waiting = make_job(tmp_path)
    assert queue.claim_next("me") is None
    reconciler.reconcile()
    assert not process.is_alive(identity)
    claimed = queue.claim_next("me")
    assert claimed is not None and claimed.pk == waiting.pk

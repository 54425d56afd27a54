"""How a job ends, whatever its engine left behind: a report, a torn report, a journal, an exit code or nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.jobs import leased_job, statuses
from tests.training.api.test_reads import write_checkpoint
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import ErrorEvent, StatusEvent, encode
from trainer_engine.contract.run import ExitReport
from training.jobs import log, outcome
from training.models import Event, Job, Status

pytestmark = pytest.mark.django_db
FIELDS = st.sampled_from(list(ExitReport.model_fields))


def ended(job: Job, **how: Any) -> Job:
    assert outcome.conclude(job, **how)
    return Job.objects.get(pk=job.pk)


def running(folder: Path, **values: Any) -> Job:
    job = leased_job(folder, status=Status.RUNNING, **values)
    job.folder.create()
    return job


def report(job: Job, **values: Any) -> None:
    usual = {"exit_code": 0, "status": "completed", "step": 4, "finished_at": "2026-01-01T00:00:00+00:00"}
    ExitReport(**{**usual, **values}).write(job.folder)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ExitCode.COMPLETED, Status.COMPLETED),
        (ExitCode.STOPPED, Status.STOPPED),
        *((code, Status.ERROR) for code in ExitCode if code not in (ExitCode.COMPLETED, ExitCode.STOPPED)),
        (99, Status.ERROR),
    ],
)
def test_the_exit_code_of_a_report_decides_the_status(tmp_path: Path, code: int, status: Status) -> None:
    job = running(tmp_path)
    report(job, exit_code=int(code), error_code="some_code" if status is Status.ERROR else None)
    job = ended(job)
    assert job.status == status and job.message and job.finished_at is not None
    assert job.error_code == ("some_code" if status is Status.ERROR else "")
    assert statuses(job) == [status.value]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=40) | st.dictionaries(FIELDS, st.none() | st.integers() | st.text(max_size=5)))
def test_a_report_that_cannot_be_read_ends_the_job_all_the_same(tmp_path: Path, content: Any) -> None:
    job = running(tmp_path)
    job.folder.exit_file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    job = ended(job)
    assert job.has_ended and job.message
    Job.objects.all().delete()


@pytest.mark.parametrize(
    ("exit_status", "code", "says"),
    [
        (None, "interrupted", "is gone and left no report"),
        (-signal.SIGKILL, "interrupted", "memory runs out"),
        (-signal.SIGTERM, "interrupted", "SIGTERM"),
        (-64 - 31, "interrupted", "signal 95"),
        (3, "interrupted", "exit code 3"),
        (int(ExitCode.DISK), "disk_full", "disk that is full"),
        (int(ExitCode.OUT_OF_MEMORY), "out_of_memory", "memory ran out"),
        (int(ExitCode.NON_FINITE), "non_finite_loss", "not finite"),
    ],
)
def test_without_a_report_the_exit_status_says_why(tmp_path: Path, exit_status: int | None, code: str, says: str) -> None:
    job = ended(running(tmp_path, progress={"step": 1}), exit_status=exit_status)
    assert (job.status, job.error_code) == (Status.ERROR, code)
    assert says in job.message and "There is no checkpoint." in job.message and job.hint
    errors = Event.objects.filter(job=job, type="error")
    assert [event.payload["data"]["code"] for event in errors] == [code]


@pytest.mark.parametrize("exit_status", [int(ExitCode.COMPLETED), int(ExitCode.STOPPED)])
def test_a_good_exit_code_without_a_report_is_believed(tmp_path: Path, exit_status: int) -> None:
    job = ended(running(tmp_path), exit_status=exit_status)
    assert job.status in (Status.COMPLETED, Status.STOPPED) and "could not be written" in job.message
    assert not job.events.filter(type="error").exists()


def test_the_last_error_of_the_journal_is_the_reason_and_is_not_said_twice(tmp_path: Path) -> None:
    job = running(tmp_path, next_index=1)
    error = ErrorEvent(code="dataset_empty", title="Training failed", message="No image was found.", hint="look at the path")
    log.insert(job.pk, [log.NewEvent("error", {"message": error.message, "data": error.data()}, "error", seq=0)], first_index=0)
    job = ended(job, exit_status=1)
    assert (job.error_code, job.hint) == ("dataset_empty", "look at the path") and job.message.startswith("No image was found.")
    assert job.events.filter(type="error").count() == 1


def test_an_interrupted_run_names_its_newest_checkpoint_that_verifies(tmp_path: Path) -> None:
    job = running(tmp_path, progress={"step": 9})
    write_checkpoint(Path(job.output_dir), 4)
    (write_checkpoint(Path(job.output_dir), 8) / "weights").write_bytes(b"torn")
    job = ended(job)
    assert job.checkpoint == "checkpoint-4" and "checkpoint-4" in job.message and "resume_from_checkpoint=latest" in job.hint


def test_a_run_stopped_before_its_first_step_has_nothing_to_save(tmp_path: Path) -> None:
    job = running(tmp_path)
    Job.objects.filter(pk=job.pk).update(status=Status.STOPPING)
    job = ended(Job.objects.get(pk=job.pk))
    assert (job.status, job.error_code) == (Status.STOPPED, "") and "nothing to save" in job.message


def test_a_stop_that_took_too_long_is_an_error_of_its_own(tmp_path: Path) -> None:
    job = running(tmp_path, progress={"step": 2})
    job.folder.journal.write_text(encode(StatusEvent(status="stopped"), seq=0) + "\n")
    job = ended(job, error_code=outcome.STOP_TIMEOUT)
    assert (job.status, job.error_code) == (Status.ERROR, "stop_timeout") and "was killed" in job.message


def test_a_job_that_was_cancelled_meanwhile_is_not_ended_again(tmp_path: Path) -> None:
    job = running(tmp_path)
    Job.objects.filter(pk=job.pk).update(status=Status.CANCELLED, message="by a person")
    report(job)
    assert not outcome.conclude(job)
    job.refresh_from_db()
    assert (job.status, job.message) == (Status.CANCELLED, "by a person") and not job.events.exists()


def test_the_reserve_of_a_killed_engine_is_given_back(tmp_path: Path) -> None:
    job = running(tmp_path)
    job.folder.reserve.write_bytes(bytes(1024))
    ended(job)
    assert not job.folder.reserve.exists()

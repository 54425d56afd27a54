"""Decides how a job ends once its process is gone: from the engine's report, else from its journal, exit code and checkpoints."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from pydantic import ValidationError

from trainer_engine.contract.checkpoint_files import newest_verified
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import REASON_IN_ERROR, EventType, Severity
from trainer_engine.contract.run import ExitReport, RunFolder
from training.engine import process
from training.engine.journal import last_entry
from training.engine.process import EngineIdentity
from training.jobs import log
from training.jobs.queue import enqueue_next
from training.models import Job, Status

INTERRUPTED = "interrupted"
STOP_TIMEOUT = "stop_timeout"
BURIAL_SECONDS = 2.0
ERROR_OF_CODE = {
    ExitCode.DISK: ("disk_full", "The engine ended because it could not write to a disk that is full.", "free some space and start again"),
    ExitCode.OUT_OF_MEMORY: ("out_of_memory", "The engine ended because memory ran out.", "look at the job's log"),
    ExitCode.NON_FINITE: ("non_finite_loss", "The engine ended because loss or gradients were not finite.", "look at the job's log"),
}
"""(error code, message, hint) for an exit code, for when neither the report nor the journal could be written."""
STATUS_OF_CODE: Mapping[int | None, Status] = {ExitCode.COMPLETED: Status.COMPLETED, ExitCode.STOPPED: Status.STOPPED}


@dataclass(frozen=True)
class JobOutcome:
    """The terminal status of a job and the reason for it."""

    status: Status
    message: str
    error_code: str = ""
    hint: str = ""
    checkpoint: str = ""
    """The newest checkpoint whose hashes were checked; empty if that was not needed."""


def read_report(folder: RunFolder) -> ExitReport | None:
    """The engine's report; None if it is missing or unreadable."""
    try:
        return ExitReport.read(folder)
    except (OSError, ValidationError):
        return None


def conclude(job: Job, *, error_code: str = INTERRUPTED, exit_status: int | None = None) -> bool:
    """End a job whose process is gone and whose journal is in the log. Returns whether this call ended it."""
    report = read_report(job.folder)
    outcome = from_report(report) if report else without_report(job, error_code, exit_status)
    ended = finish(job, outcome)
    release_engine(job.pk, job.engine, job.folder)
    with suppress(OSError):
        job.folder.reserve.unlink(missing_ok=True)  # a killed engine leaves it behind
    return ended


def from_report(report: ExitReport) -> JobOutcome:
    status = STATUS_OF_CODE.get(ExitCode(report.exit_code), Status.ERROR) if report.exit_code in list(ExitCode) else Status.ERROR
    if status is not Status.ERROR:
        return JobOutcome(status, report.message or f"Training {status.label} at step {report.step}.")
    return JobOutcome(status, report.message or "Training failed.", report.error_code or "failure", report.hint)


def without_report(job: Job, error_code: str, exit_status: int | None) -> JobOutcome:
    """The outcome of a process that left no report, from its journal, its exit status and its checkpoints.

    ``exit_status`` is its exit code, negative for a signal; None if unknown.
    """
    good_status = _last_status(job) or STATUS_OF_CODE.get(exit_status)
    if good_status and error_code == INTERRUPTED:
        return JobOutcome(good_status, f"Training {good_status.label}; its report could not be written.")
    newest = newest_verified(Path(job.output_dir))
    kept = f"The newest complete checkpoint is {newest.name}; its hashes were checked." if newest else "There is no checkpoint."
    checkpoint = newest.name if newest else ""
    last_error = _last_error(job) if error_code == INTERRUPTED else None
    if last_error is not None:
        code, message, hint = last_error
        return JobOutcome(Status.ERROR, f"{message} {kept}", code, hint, checkpoint)
    if exit_status in ERROR_OF_CODE and error_code == INTERRUPTED:
        code, message, hint = ERROR_OF_CODE[ExitCode(exit_status)]
        return JobOutcome(Status.ERROR, f"{message} {kept}", code, hint, checkpoint)
    if job.status == Status.STOPPING and job.progress is None and error_code == INTERRUPTED:
        return JobOutcome(Status.STOPPED, "Stopped before the first step; there was nothing to save.")
    hint = "Start again with resume_from_checkpoint=latest to continue from it." if newest else "Look at the job's log, and start again."
    return JobOutcome(Status.ERROR, f"{_cause(error_code, exit_status)} {kept}", error_code, hint, checkpoint)


def _last_status(job: Job) -> Status | None:
    """The status in the last entry of the engine's journal, if it is completed or stopped."""
    last = last_entry(job.folder.journal)
    if last is None or last.type != EventType.STATUS.value:
        return None
    return {status.value: status for status in STATUS_OF_CODE.values()}.get(str(last.data.get("status")))


def _last_error(job: Job) -> tuple[str, str, str] | None:
    """Code, message and hint of the last error in the engine's journal."""
    errors = job.events.filter(type=EventType.ERROR.value, severity=Severity.ERROR.value, seq__isnull=False)
    last = errors.order_by("index").last()
    if last is None:
        return None
    data = last.payload.get("data") or {}
    return str(data.get("code") or "failure"), str(last.payload.get("message") or "Training failed."), str(data.get("hint") or "")


def _cause(error_code: str, exit_status: int | None) -> str:
    if error_code == STOP_TIMEOUT:
        return "The engine did not end in time after it was asked to stop, and was killed."
    if exit_status is None:
        return "The engine's process is gone and left no report."
    if exit_status >= 0:
        return f"The engine's process ended with exit code {exit_status} and left no report."
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:
        name = f"signal {-exit_status}"
    guess = " This is what the system does when memory runs out." if -exit_status == signal.SIGKILL else ""
    return f"The engine's process was killed ({name}).{guess}"


def finish(job: Job, outcome: JobOutcome) -> bool:
    """Write the terminal status, its reason and its last events in one transaction. Returns whether this call ended the job."""
    events = [log.status_event(outcome.status, REASON_IN_ERROR if outcome.status is Status.ERROR else outcome.message)]
    if outcome.status is Status.ERROR:
        is_reported = job.events.filter(type=EventType.ERROR.value, seq__isnull=False).exists()
        events = ([] if is_reported else [log.error_event(outcome.error_code, outcome.message, outcome.hint)]) + events
    with transaction.atomic():
        moved = log.move(
            job.pk,
            outcome.status,
            events,
            message=outcome.message,
            error_code=outcome.error_code,
            hint=outcome.hint,
            checkpoint=outcome.checkpoint or job.checkpoint,
            finished_at=timezone.now(),
            lease_owner="",
            lease_until=None,
        )
        transaction.on_commit(enqueue_next)
    return moved


def release_engine(job_id: UUID, identity: EngineIdentity | None, folder: RunFolder) -> bool:
    """Kill what is left of an ended run, then free its slot. Returns whether the slot is free."""
    process.kill(identity, folder)
    if not process.wait_until_gone(identity, folder, seconds=BURIAL_SECONDS):
        return False
    Job.objects.filter(pk=job_id).update(engine_pid=None)
    enqueue_next()
    return True

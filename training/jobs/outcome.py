"""How a run whose process is gone ends: the engine's own report, or what can be found out without one."""

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
WORDS_OF_CODE = {
    ExitCode.DISK: ("disk_full", "The engine ended because a disk did not take what it had to write.", "free some space and start again"),
    ExitCode.OUT_OF_MEMORY: ("out_of_memory", "The engine ended because memory ran out.", "look at the job's log"),
    ExitCode.NON_FINITE: ("non_finite_loss", "The engine ended because loss or gradients were not finite.", "look at the job's log"),
}
"""What an exit code alone says, where neither report nor journal could be written."""
STATUS_OF_CODE: Mapping[int | None, Status] = {ExitCode.COMPLETED: Status.COMPLETED, ExitCode.STOPPED: Status.STOPPED}


@dataclass(frozen=True)
class Ending:
    """What a job's last status says."""

    status: Status
    message: str
    error_code: str = ""
    hint: str = ""
    checkpoint: str = ""
    """The newest checkpoint whose hashes were checked; empty where that was not needed."""


def read_report(folder: RunFolder) -> ExitReport | None:
    """The engine's last word; None where there is none, or none that can be read."""
    try:
        return ExitReport.read(folder)
    except (OSError, ValidationError):
        return None


def conclude(job: Job, *, error_code: str = INTERRUPTED, exit_status: int | None = None) -> bool:
    """End a job whose process is gone and whose journal is in the log. Whether this call ended it."""
    report = read_report(job.folder)
    ending = from_report(report) if report else without_report(job, error_code, exit_status)
    ended = finish(job, ending)
    release_engine(job.pk, job.engine, job.folder)
    with suppress(OSError):
        job.folder.reserve.unlink(missing_ok=True)  # of an engine that was killed
    return ended


def from_report(report: ExitReport) -> Ending:
    status = STATUS_OF_CODE.get(ExitCode(report.exit_code), Status.ERROR) if report.exit_code in list(ExitCode) else Status.ERROR
    if status is not Status.ERROR:
        return Ending(status, report.message or f"Training {status.label} at step {report.step}.")
    return Ending(status, report.message or "Training failed.", report.error_code or "failure", report.hint)


def without_report(job: Job, error_code: str, exit_status: int | None) -> Ending:
    """What can be found out of a process that left no report: what its journal said last, how it ended, what it saved.

    ``exit_status``: its exit code, negative for a signal; None if that is not known.
    """
    ended_well = _last_status(job) or STATUS_OF_CODE.get(exit_status)
    if ended_well and error_code == INTERRUPTED:
        return Ending(ended_well, f"Training {ended_well.label}; its report could not be written.")
    newest = newest_verified(Path(job.output_dir))
    kept = f"The newest whole checkpoint is {newest.name}; its hashes were checked." if newest else "There is no checkpoint."
    checkpoint = newest.name if newest else ""
    said = _last_error(job) if error_code == INTERRUPTED else None
    if said is not None:
        code, message, hint = said
        return Ending(Status.ERROR, f"{message} {kept}", code, hint, checkpoint)
    if exit_status in WORDS_OF_CODE and error_code == INTERRUPTED:
        code, message, hint = WORDS_OF_CODE[ExitCode(exit_status)]
        return Ending(Status.ERROR, f"{message} {kept}", code, hint, checkpoint)
    if job.status == Status.STOPPING and job.progress is None and error_code == INTERRUPTED:
        return Ending(Status.STOPPED, "Stopped before the first step; there was nothing to save.")
    hint = "Start again with resume_from_checkpoint=latest to go on from it." if newest else "Look at the job's log, and start again."
    return Ending(Status.ERROR, f"{_cause(error_code, exit_status)} {kept}", error_code, hint, checkpoint)


def _last_status(job: Job) -> Status | None:
    """Completed or stopped, where these are the last words of the engine's journal."""
    last = last_entry(job.folder.journal)
    if last is None or last.type != EventType.STATUS.value:
        return None
    return {status.value: status for status in STATUS_OF_CODE.values()}.get(str(last.data.get("status")))


def _last_error(job: Job) -> tuple[str, str, str] | None:
    """Code, message and hint of the error that the engine's journal ends with."""
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
        return "The engine's process is gone and left no word why."
    if exit_status >= 0:
        return f"The engine's process ended with exit code {exit_status} and left no word why."
    try:
        name = signal.Signals(-exit_status).name
    except ValueError:
        name = f"signal {-exit_status}"
    guess = " This is what the system does when memory runs out." if -exit_status == signal.SIGKILL else ""
    return f"The engine's process was killed ({name}).{guess}"


def finish(job: Job, ending: Ending) -> bool:
    """The terminal status, its reason and its events, in one transaction: nothing follows them in the log. Whether this call did it."""
    drafts = [log.status_draft(ending.status, REASON_IN_ERROR if ending.status is Status.ERROR else ending.message)]
    if ending.status is Status.ERROR:
        told = job.events.filter(type=EventType.ERROR.value, seq__isnull=False).exists()
        drafts = ([] if told else [log.error_draft(ending.error_code, ending.message, ending.hint)]) + drafts
    with transaction.atomic():
        moved = log.move(
            job.pk,
            ending.status,
            drafts,
            message=ending.message,
            error_code=ending.error_code,
            hint=ending.hint,
            checkpoint=ending.checkpoint or job.checkpoint,
            finished_at=timezone.now(),
            lease_owner="",
            lease_until=None,
        )
        transaction.on_commit(enqueue_next)
    return moved


def release_engine(job_id: UUID, identity: EngineIdentity | None, folder: RunFolder) -> bool:
    """Make sure that nothing of an ended run is left, then free its slot. Whether it is free."""
    process.kill(identity, folder)
    if not process.wait_until_gone(identity, folder, seconds=BURIAL_SECONDS):
        return False
    Job.objects.filter(pk=job_id).update(engine_pid=None)
    enqueue_next()
    return True

"""How a run whose process is gone ends: the engine's own report, or what can be found out without one."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from pydantic import ValidationError

from trainer_engine.contract.checkpoint_files import newest_verified
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import REASON_IN_ERROR, EventType
from trainer_engine.contract.run import ExitReport, RunFolder
from training import engine_process, log
from training.engine_process import EngineIdentity
from training.enqueue import enqueue_next
from training.models import Job, Status

INTERRUPTED = "interrupted"
STOP_TIMEOUT = "stop_timeout"
BURIAL_SECONDS = 2.0
STATUS_OF_CODE = {ExitCode.COMPLETED: Status.COMPLETED, ExitCode.STOPPED: Status.STOPPED}


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


def conclude(job: Job, *, error_code: str = INTERRUPTED, killed_by: int | None = None) -> bool:
    """End a job whose process is gone and whose journal is in the log. Whether this call ended it."""
    report = read_report(job.folder)
    ending = from_report(report) if report else without_report(job, error_code, killed_by)
    ended = finish(job, ending)
    release_engine(job.pk, job.engine, job.folder)
    return ended


def from_report(report: ExitReport) -> Ending:
    status = STATUS_OF_CODE.get(ExitCode(report.exit_code), Status.ERROR) if report.exit_code in list(ExitCode) else Status.ERROR
    if status is not Status.ERROR:
        return Ending(status, report.message or f"Training {status.label} at step {report.step}.")
    return Ending(status, report.message or "Training failed.", report.error_code or "failure", report.hint)


def without_report(job: Job, error_code: str, killed_by: int | None) -> Ending:
    """The process died before it could say why."""
    if job.status == Status.STOPPING and job.progress is None and error_code == INTERRUPTED:
        return Ending(Status.STOPPED, "Stopped before the first step; there was nothing to save.")
    newest = newest_verified(Path(job.output_dir))
    kept = f"The newest whole checkpoint is {newest.name}; its hashes were checked." if newest else "There is no checkpoint."
    hint = "Start again with resume_from_checkpoint=latest to go on from it." if newest else "Look at the job's log, and start again."
    return Ending(Status.ERROR, f"{_cause(error_code, killed_by)} {kept}", error_code, hint, newest.name if newest else "")


def _cause(error_code: str, killed_by: int | None) -> str:
    if error_code == STOP_TIMEOUT:
        return "The engine did not end in time after it was asked to stop, and was killed."
    if killed_by is None:
        return "The engine's process is gone and left no word why."
    try:
        name = signal.Signals(killed_by).name
    except ValueError:
        name = f"signal {killed_by}"
    guess = " This is what the system does when memory runs out." if killed_by == signal.SIGKILL else ""
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
    engine_process.kill(identity, folder)
    if not engine_process.wait_until_gone(identity, folder, seconds=BURIAL_SECONDS):
        return False
    Job.objects.filter(pk=job_id).update(engine_pid=None)
    enqueue_next()
    return True

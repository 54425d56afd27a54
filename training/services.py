"""Starts, stops and cancels runs. These are the only functions with which a request changes runs."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from environments import services as environments
from environments.errors import EnvironmentNotFound
from environments.files.config_files import without_marks
from environments.home import current_home
from environments.models import Environment
from environments.resolve.changes import BASE, CONSENT, FAMILY, FLAVOUR, RunRecord, is_one_off, laid_under
from environments.resolve.checks import effective_defaults
from environments.resolve.run import RESUME, resolve_run
from environments.secrets.store import with_secrets
from trainer_engine.config.datasets.secrets import hide_datasets
from trainer_engine.config.options import REGISTRY, canonical_name
from trainer_engine.config.options.secrets import hide_options, reveal_options
from trainer_engine.contract import commands
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import Problem
from training.api import representations
from training.engine import process
from training.engine.launcher import LaunchSettings
from training.errors import CannotStart, EnvironmentGone, NoActiveJob, NotEnded, NothingSaved, OtherModel, writing
from training.jobs import log, outcome, queue, secrets
from training.jobs.queue import enqueue_next
from training.models import ACTIVE, Job, Status
from training.preflight.apart import examine_run_apart
from training.preflight.summary import PreflightReport
from training.webhooks import outbox
from training.webhooks.egress import webhook_problems

LONGEST_KEY = 255


@dataclass(frozen=True)
class Started:
    """A job that was accepted, now or under the same key before."""

    job: Job
    queue_position: int | None
    """From 1 if it has to wait for another run; None if it is about to start."""
    report: PreflightReport | None
    """The result of the checks; None if the key had been used before."""
    record: RunRecord | None = None
    """What the start changed in the environment; None if the key had been used before."""


def check(submitted: Mapping[str, Any], environment: Environment | None = None) -> PreflightReport:
    """Check a form laid over an environment (default: the active one). Writes nothing."""
    environment = environment or environments.active()
    home = current_home()
    sent = without_marks(submitted)
    stored = laid_under(environment.config, sent) if environment else {}
    if environment is not None:
        stored, sent = (with_secrets(home, environment.name, values) for values in (stored, sent))
    resolved = resolve_run(home, stored, sent)
    report = examine_run_apart(resolved, home, waits_for={str(pk) for pk in queue.occupied().values_list("pk", flat=True)})
    broken = (
        [
            Problem.error(problem["option"], problem["code"], problem["message"], hint=problem.get("hint", ""))
            for problem in environment.file_problems
        ]
        if environment
        else []
    )
    found = {(problem.option, problem.code) for problem in report.problems}
    examined = report.problems if environment else [_without_environment(problem) for problem in report.problems]
    broken = [problem for problem in broken if (problem.option, problem.code) not in found]
    problems = [*broken, *examined, *webhook_problems(report.webhooks)]
    return PreflightReport(report.resolved, problems, report.understood, report.webhooks)


def _without_environment(problem: Problem) -> Problem:
    """A missing option may be one that an environment holds: say that none is active."""
    is_absent = problem.code == "missing" and problem.option in REGISTRY
    return replace(problem, hint=f"{problem.hint}; no environment is active, whose options would be used") if is_absent else problem


def start_training(submitted: Mapping[str, Any], *, key: str = "", environment: Environment | None = None) -> Started:
    """Check, freeze and queue a run. The same key returns the same job again. Raises CannotStart with every problem."""
    known = _of_key(key)
    if known is not None:
        return known
    key = _stored_key(key)
    active = environment or environments.active()
    report = check(submitted, active)
    if report.errors or report.resolved.options is None:
        raise CannotStart(report)
    one_off = environment is None and active is not None and is_one_off(active.config, submitted)
    record: RunRecord | None = None
    try:
        with writing():
            job, record = _queue(report, None if one_off else active, key)
    except IntegrityError:
        # Two requests with one key at the same moment: the other one was first.
        job = Job.objects.get(idempotency_key=key)
    return Started(job, queue.position(job), report, record)


def _stored_key(key: str) -> str:
    return key if len(key) <= LONGEST_KEY else hashlib.sha256(key.encode()).hexdigest()


def _of_key(key: str) -> Started | None:
    """The job that was accepted under a key before."""
    known = Job.objects.filter(idempotency_key=_stored_key(key)).first() if key else None
    return None if known is None else Started(known, queue.position(known), None)


def resume_training(job: Job, submitted: Mapping[str, Any], *, key: str = "") -> Started:
    """Go on with a run that has ended, from its newest checkpoint: its options, with those of ``submitted`` over them.

    The options in which its environment differs by now are written into it again. The datasets file is read as it is today. Raises
    NotEnded, NothingSaved, EnvironmentGone, OtherModel, and CannotStart with every problem.
    """
    known = _of_key(key)
    if known is not None:
        return known
    if not job.has_ended:
        raise NotEnded(job)
    submitted = without_marks(submitted)
    try:
        environment = environments.find(job.environment)
    except EnvironmentNotFound as error:
        raise EnvironmentGone(job) from error
    home = current_home()
    run = resolve_run(home, with_secrets(home, environment.name, environment.config), {})
    now = run.values if run.options else {**effective_defaults(run.given), **run.values}
    then = reveal_options(job.options, secrets.of_options(job))
    if is_one_off(environment.config, {name: then.get(name) for name in (FAMILY, FLAVOUR, BASE) if then.get(name)}):
        raise OtherModel(job)
    if not list_checkpoints(Path(job.output_dir)):
        raise NothingSaved(job)
    differing = {name: value for name, value in then.items() if name in REGISTRY and name not in CONSENT and now.get(name) != value}
    given = {canonical_name(name) for name in submitted}
    kept = {name: value for name, value in {**differing, RESUME: "latest"}.items() if name not in given}
    return start_training({**kept, **submitted}, key=key, environment=environment)


def _queue(report: PreflightReport, environment: Environment | None, key: str) -> tuple[Job, RunRecord]:
    resolved = report.resolved
    assert resolved.options is not None  # the caller saw no error
    with transaction.atomic():
        queue.lock()
        record = environments.record_run_config(environment.name if environment else None, resolved.given)
        job_id = uuid.uuid4()
        number = queue.next_number()
        job = Job.objects.create(
            id=job_id,
            number=number,
            turn=number,
            environment=record.environment.name,
            options=hide_options(resolved.values),
            datasets=hide_datasets(resolved.datasets),
            launch=LaunchSettings.of(resolved.options, resolved.dataloader).as_dict(),
            plan={**report.understood, **representations.files_behind(resolved.given)},
            output_dir=str(resolved.values["output_dir"]),
            run_dir=str(Path(settings.STATE_DIR) / "runs" / str(job_id)),
            idempotency_key=key or None,
        )
        targets = outbox.with_prefixes(report.webhooks, resolved.options)
        secrets.keep(job, resolved.values, resolved.datasets, targets)
        outbox.open_channels(job, targets, resolved.options.hooks.webhook_reporting_interval)
        log.append(job.pk, [log.status_event(Status.QUEUED, "The configuration was checked; the job waits for a worker.")])
        transaction.on_commit(enqueue_next)
    return job, record


def stop_training(job: Job) -> Job:
    """End a run: at once while it waits in the queue, after a verified checkpoint once it runs. Does nothing to an ended run."""
    if job.status == Status.QUEUED and _cancel_queued(job):
        return _fresh(job)
    asked = log.status_event(Status.STOPPING, "The run finishes its step, saves, and ends.")
    if log.move(job.pk, Status.STOPPING, [asked], stop_requested_at=timezone.now()):
        job = _fresh(job)
        with suppress(OSError):  # a full disk: the signal is enough
            commands.request(job.folder, Command.STOP)
        if job.engine is not None:
            process.ask_to_end(job.engine, job.folder)
    return _fresh(job)


def _cancel_queued(job: Job) -> bool:
    with transaction.atomic():
        queue.lock()
        if not Job.objects.filter(pk=job.pk, status=Status.QUEUED).exists():
            return False
        return _cancel(job, "Taken out of the queue.")


def _cancel(job: Job, message: str) -> bool:
    events = [log.status_event(Status.CANCELLED, message)]
    return log.move(job.pk, Status.CANCELLED, events, message=message, finished_at=timezone.now(), lease_owner="", lease_until=None)


def request_command(job: Job | None, command: Command) -> Job:
    """Send a run a command, which it carries out after its next gradient synchronisation. During start-up the command waits.

    Raises NoActiveJob if the job neither trains nor is about to.
    """
    if job is None or not (job.status in (Status.STARTING, Status.RUNNING) or queue.is_about_to_start(job)):
        raise NoActiveJob
    with writing():
        commands.request(job.folder, command)
    return job


def cancel_training(job: Job) -> bool:
    """End a run at once without saving, by killing its process group. Returns whether this call cancelled it."""
    waited = job.status == Status.QUEUED
    if not _cancel(job, "Taken out of the queue." if waited else "Cancelled; nothing was saved."):
        return False
    job = _fresh(job)
    outcome.release_engine(job.pk, job.engine, job.folder)
    return True


def _fresh(job: Job) -> Job:
    return Job.objects.get(pk=job.pk)


def is_unfinished(job: Job | None) -> bool:
    """Whether there is a job and it has not ended."""
    return job is not None and (job.status == Status.QUEUED or job.status in ACTIVE)

"""Follows one run for a slice of time: watches its process, reads its journal and enforces its stop deadline."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from environments.home import current_home
from training.engine import devices, launcher, process
from training.engine.accelerate_file import UnreadableAccelerateConfig
from training.engine.journal import read_entries
from training.engine.launcher import Launch, LaunchSettings
from training.jobs import leases, outcome, secrets
from training.jobs.ingest import ingest
from training.jobs.outcome import JobOutcome
from training.jobs.queue import enqueue_follow
from training.models import ACTIVE, Job, Status
from training.preflight.estimates import memory_numbers
from training.webhooks.egress import run_rules

POLL_SECONDS = 0.02
CHECK_SECONDS = 0.2
RENEW_SECONDS = 1.5
HANDOVER_SECONDS = 20.0
"""How long a follower keeps a run that it has offered while no other worker takes it."""
STOP_GRACE = timedelta(seconds=60)
"""Time from the stop request to SIGKILL."""
SAVING_GRACE = timedelta(minutes=10)
"""The same while the run reports that it saves: a large model on a slow disk takes minutes."""
SAVING_STAGES = ("checkpoint_save", "model_save", "scripts")
EXIT_GRACE_SECONDS = 30.0
"""How long a process may stay alive after it has written its report."""


class Follower:
    """Follows a job for one slice, on behalf of the holder of its lease."""

    def __init__(self, job: Job, owner: str) -> None:
        self.job = job
        self.owner = owner
        self.offset = job.journal_offset
        self.exit_seen_at: float | None = None

    def follow(self, slice_seconds: float | None = None) -> None:
        """Follow until the run ends, another worker takes over, or the slice is over."""
        seconds = settings.FOLLOW_SLICE.total_seconds() if slice_seconds is None else slice_seconds
        if not self._ensure_engine():
            return None
        slice_ends = time.monotonic() + seconds
        handover_ends = slice_ends + HANDOVER_SECONDS
        offered = False
        next_check = next_renewal = 0.0
        while True:
            if not self._read():
                return None
            now = time.monotonic()
            if now >= next_check:
                next_check = now + CHECK_SECONDS
                if not self._check_process():
                    return None
            if now >= slice_ends and not offered:
                offered = True
                leases.offer(self.job.pk, self.owner)
                enqueue_follow(self.job.pk)
            if now >= handover_ends:
                return leases.release(self.job.pk, self.owner)
            if not offered and now >= next_renewal:
                next_renewal = now + RENEW_SECONDS
                if not leases.renew(self.job.pk, self.owner):
                    return None
            time.sleep(POLL_SECONDS)

    def _read(self) -> bool:
        """Copy new journal entries into the log. Returns whether the run is still ours."""
        while True:
            reading = read_entries(self.job.folder.journal, self.offset)
            if reading.offset == self.offset:
                return True
            if not ingest(self.job.pk, self.owner, self.offset, reading):
                return False
            self.offset = reading.offset

    def _check_process(self) -> bool:
        """Whether the run is ours and its process lives. Ends the job if the process is gone or overstays its deadline."""
        self.job.refresh_from_db()
        if self.job.status not in ACTIVE or self.job.lease_owner != self.owner:
            return False
        identity = self.job.engine
        if identity is None or not process.is_alive(identity):
            return self._conclude(outcome.INTERRUPTED)
        if self._has_overstayed():
            process.kill(identity, self.job.folder)
            process.wait_until_gone(identity, self.job.folder, seconds=outcome.BURIAL_SECONDS)
            return self._conclude(outcome.STOP_TIMEOUT)
        return True

    def _conclude(self, error_code: str) -> bool:
        """Copy the last journal entries of a process that is gone into the log, then end the job. Always False."""
        identity = self.job.engine
        exit_status = process.exit_status(identity) if identity else None
        if not self._read():
            return False
        self.job.refresh_from_db()
        outcome.conclude(self.job, error_code=error_code, exit_status=exit_status)
        return False

    def _has_overstayed(self) -> bool:
        if self.job.folder.exit_file.exists():
            self.exit_seen_at = self.exit_seen_at or time.monotonic()
            return time.monotonic() - self.exit_seen_at > EXIT_GRACE_SECONDS
        asked_at = self.job.stop_requested_at
        if self.job.status != Status.STOPPING or asked_at is None:
            return False
        saving = any(self.job.startup.get(stage, {}).get("status") == "running" for stage in SAVING_STAGES)
        return timezone.now() - asked_at > (SAVING_GRACE if saving else STOP_GRACE)

    # ---- starting ----
    def _ensure_engine(self) -> bool:
        """Find the run's process, or start one if none was ever started. False if the job has ended instead."""
        if self.job.engine_pid is not None:
            return True
        found = process.find(self.job.folder)
        if found is None and self._was_started():
            return self._conclude(outcome.INTERRUPTED)
        if found is None and self.job.status == Status.STOPPING:
            return self._conclude(outcome.INTERRUPTED)
        identity = found or self._launch()
        return identity is not None and self._note(identity)

    def _was_started(self) -> bool:
        folder = self.job.folder
        return folder.exit_file.exists() or folder.log.exists() or self.offset > 0

    def _launch(self) -> process.EngineIdentity | None:
        """Start the engine; None if that failed, in which case the job has ended."""
        launch = launch_of(self.job)
        gpus = devices.gpus_of(process.passed_environment())
        try:
            if settings.SLOTS < 2 or not launch.settings.takes_one_gpu or len(gpus.names) < 2:
                return launcher.start(self.job.folder, launch)
            with devices.one_at_a_time(current_home().state):
                only = gpus.only(devices.least_used(gpus, process.engine_environments()))
                return launcher.start(self.job.folder, replace(launch, devices=only))
        except (OSError, UnreadableAccelerateConfig) as error:
            outcome.finish(self.job, JobOutcome(Status.ERROR, f"The engine could not be started: {error}", "launch_failed"))
        return None

    def _note(self, identity: process.EngineIdentity) -> bool:
        """Store the process with the job. Kills it if the run was cancelled in the meantime."""
        ours = Job.objects.filter(pk=self.job.pk, lease_owner=self.owner, status__in=ACTIVE)
        noted = ours.update(engine_pid=identity.pid, engine_started_at=identity.started_at, engine_boot_id=identity.boot_id)
        if not noted:
            process.kill(identity, self.job.folder)
            return False
        self.job.refresh_from_db()
        if self.job.status == Status.STOPPING:
            process.ask_to_end(identity, self.job.folder)
        return True


def launch_of(job: Job) -> Launch:
    """What the engine of a job is started with."""
    home = current_home()
    return Launch(
        job_id=str(job.pk),
        environment=job.environment,
        options=job.options,
        datasets=job.datasets,
        memory_estimate=memory_numbers(job.plan),
        settings=LaunchSettings.from_dict(job.launch),
        scripts=home.script_rule,
        places=home.place_rule,
        secrets=secrets.of_options(job),
        machines=run_rules().machines,
    )

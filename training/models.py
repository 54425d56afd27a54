"""Runs, their events, their checkpoints and their webhook deliveries. Only ``services``, ``jobs`` and ``webhooks`` write here."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from django.db import models
from django.utils import timezone

from trainer_engine.contract.run import RunFolder
from training.engine.process import EngineIdentity


class Status(models.TextChoices):
    """The state of a job. A job is in exactly one of these at any time."""

    QUEUED = "queued", "queued"
    """Checked and waiting for a slot."""
    STARTING = "starting", "starting"
    """A worker has claimed it; the engine loads and caches."""
    RUNNING = "running", "running"
    """The engine has reported that it trains."""
    STOPPING = "stopping", "stopping"
    """A stop was requested; the engine saves and exits."""
    COMPLETED = "completed", "completed"
    """All steps were taken and the result is on disk."""
    STOPPED = "stopped", "stopped"
    """It ended early on request, after saving."""
    CANCELLED = "cancelled", "cancelled"
    """It was ended at once, or taken out of the queue; nothing was saved for it."""
    ERROR = "error", "error"
    """It failed before it was done; ``error_code`` says why."""


ACTIVE = (Status.STARTING, Status.RUNNING, Status.STOPPING)
TERMINAL = (Status.COMPLETED, Status.STOPPED, Status.CANCELLED, Status.ERROR)


class Job(models.Model):
    """One run: its frozen configuration and its current state."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    number = models.BigIntegerField(unique=True, editable=False)
    """Counts the jobs from 1 in the order in which they were accepted; the streams use this order."""
    turn = models.BigIntegerField(default=0, editable=False)
    """Waiting jobs start in this order: their numbers, until somebody moves one."""
    environment = models.CharField(max_length=64, blank=True, default="")
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.QUEUED)
    options: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict)
    """Option name without dashes -> resolved value; never changes."""
    datasets: models.JSONField[list[dict[str, Any]], list[dict[str, Any]]] = models.JSONField(default=list)
    """The dataset entries, paths absolute; never change."""
    launch: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict, blank=True)
    """How the engine is started: ``training.engine.launcher.LaunchSettings`` as a dictionary; never changes."""
    plan: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict, blank=True)
    """The results of the checks before the start: steps, epochs, datasets, memory, disk."""
    output_dir = models.TextField()
    run_dir = models.TextField()
    webhook_interval = models.PositiveIntegerField(default=0)
    """Seconds between two posts of progress."""
    progress_posted_at = models.FloatField(default=0.0)
    """Seconds since the epoch: time of the last progress event that was given to the webhooks."""
    idempotency_key = models.CharField(max_length=255, unique=True, null=True, blank=True)

    engine_pid = models.IntegerField(null=True, blank=True)
    """Process id of the engine or its launcher, until the process is known to be gone."""
    engine_started_at = models.BigIntegerField(null=True, blank=True)
    """Clock ticks from boot to the start of that process, because process ids are reused."""
    engine_boot_id = models.CharField(max_length=64, blank=True, default="")

    journal_offset = models.BigIntegerField(default=0)
    """Bytes of the journal that are in the log."""
    journal_seq = models.BigIntegerField(default=-1)
    """The last ``seq`` that is in the log."""
    next_index = models.BigIntegerField(default=0)
    """Index of the next event of the log."""
    lease_owner = models.CharField(max_length=64, blank=True, default="")
    """Id of the follower of the run."""
    lease_until = models.DateTimeField(null=True, blank=True)

    progress: models.JSONField[dict[str, Any] | None, dict[str, Any] | None] = models.JSONField(null=True, blank=True)
    """``data`` of the last progress event."""
    startup: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict, blank=True)
    """Stage key -> its progress."""
    message = models.TextField(blank=True, default="")
    error_code = models.CharField(max_length=64, blank=True, default="")
    hint = models.TextField(blank=True, default="")
    checkpoint = models.TextField(blank=True, default="")
    """Name of the newest complete checkpoint."""

    created_at = models.DateTimeField(default=timezone.now)
    started_at = models.DateTimeField(null=True, blank=True)
    """When a worker claimed it."""
    stop_requested_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-number",)
        indexes = (models.Index(fields=("status", "turn"), name="job_status_turn"),)

    def __str__(self) -> str:
        return f"Run {self.number} – {self.environment}" if self.environment else f"Run {self.number}"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(Path(self.run_dir))

    @property
    def engine(self) -> EngineIdentity | None:
        """The engine process; None before it was started and once it is known to be gone."""
        if self.engine_pid is None or self.engine_started_at is None:
            return None
        return EngineIdentity(self.engine_pid, self.engine_started_at, self.engine_boot_id)

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL


class Event(models.Model):
    """One entry of a job's log. It is written once and never changed, so an index always names the same event."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    index = models.BigIntegerField()
    """Counts from 0 without gaps, the server's own events included."""
    seq = models.BigIntegerField(null=True, blank=True)
    """Position in the engine's journal; None for the server's own events."""
    type = models.CharField(max_length=40)
    timestamp = models.CharField(max_length=40)
    """ISO 8601, UTC, as the engine or the server wrote it."""
    severity = models.CharField(max_length=10, default="info")
    payload: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict)
    """``title``, ``message``, ``body``, ``data`` and the fields of the type; images as file names."""

    class Meta:
        ordering = ("job", "index")
        constraints = (
            models.UniqueConstraint(fields=("job", "index"), name="event_index_is_unique"),
            models.UniqueConstraint(fields=("job", "seq"), name="journal_line_is_read_once"),
        )
        indexes = (models.Index(fields=("job", "type", "index"), name="event_of_type"),)

    def __str__(self) -> str:
        return f"{self.index} {self.type}"


class Checkpoint(models.Model):
    """A checkpoint that a run announced. It may have been pruned since: the folder on disk decides."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="checkpoints")
    name = models.CharField(max_length=255)
    path = models.TextField()
    step = models.BigIntegerField()
    is_final = models.BooleanField(default=False)
    size_bytes = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ("-step",)
        constraints = (models.UniqueConstraint(fields=("job", "name"), name="checkpoint_is_announced_once"),)

    def __str__(self) -> str:
        return self.name


class WebhookChannel(models.Model):
    """One webhook target of one run, and how its posts went."""

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="webhooks")
    place = models.PositiveSmallIntegerField()
    """Index in the run's list of targets, from 0."""
    target: models.JSONField[dict[str, Any], dict[str, Any]] = models.JSONField(default=dict)
    failures = models.PositiveIntegerField(default=0)
    """Failed posts since the last one that arrived."""
    next_attempt_at = models.DateTimeField(default=timezone.now)
    lease_until = models.DateTimeField(null=True, blank=True)
    """Set while a worker posts to it."""

    class Meta:
        ordering = ("job", "place")
        constraints = (models.UniqueConstraint(fields=("job", "place"), name="target_has_one_channel"),)

    def __str__(self) -> str:
        return f"{self.target.get('kind', '')} target {self.place}"


class Delivery(models.TextChoices):
    """The state of a post."""

    PENDING = "pending", "pending"
    DELIVERED = "delivered", "delivered"
    DEAD = "dead", "dead"
    """Given up: the target refuses this post, or it was retried for a day."""


class WebhookDelivery(models.Model):
    """One event to be posted to one target. It is stored in the transaction of the event."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    """Sent with the post, so that a receiver recognises a repetition."""
    channel = models.ForeignKey(WebhookChannel, on_delete=models.CASCADE, related_name="deliveries")
    index = models.BigIntegerField()
    """Index of the event."""
    status = models.CharField(max_length=10, choices=Delivery.choices, default=Delivery.PENDING)
    attempts = models.PositiveIntegerField(default=0)
    error = models.TextField(blank=True, default="")
    created_at = models.DateTimeField(default=timezone.now)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("index",)
        verbose_name_plural = "webhook deliveries"
        indexes = (models.Index(fields=("channel", "status", "index"), name="delivery_waiting"),)

    def __str__(self) -> str:
        return f"event {self.index}: {self.status}"


class QueueLock(models.Model):
    """The one row that a worker locks while it claims a job. Reconcilers store the time of their last pass in it."""

    looked_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"looked at {self.looked_at}"

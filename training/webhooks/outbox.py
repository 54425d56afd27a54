"""The outbox: posts that wait for delivery. They are stored in the transaction of their events, so none is lost or made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.webhooks import CHATS, WebhookTarget
from trainer_engine.contract.events import EventType
from training.models import Job, WebhookChannel, WebhookDelivery

USUAL_INTERVAL = 10
"""Seconds between two posts of progress if the option is not set."""


@dataclass(frozen=True)
class OutboxEvent:
    """The fields of an event that decide whether it is posted."""

    index: int
    is_progress: bool
    """Whether it reports a step of training or of a running stage. There are thousands of these, and each replaces the one before."""
    severity: str
    timestamp: str

    @classmethod
    def of(cls, index: int, type: str, severity: str, timestamp: str, payload: dict[str, Any]) -> OutboxEvent:
        stage = payload.get("stage") if type == EventType.STAGE.value else None
        moving = isinstance(stage, dict) and stage.get("status") == "running" and bool((stage.get("progress") or {}).get("current"))
        return cls(index, type == EventType.PROGRESS.value or moving, severity, timestamp)


def with_prefixes(targets: Sequence[WebhookTarget], options: TrainingOptions) -> list[WebhookTarget]:
    """The targets of a run. Chat messages get the project's name as prefix if they have none of their own."""
    project = options.reporting.tracker_project_name
    return [target if target.kind not in CHATS or target.message_prefix else replace(target, message_prefix=project) for target in targets]


def open_channels(job: Job, targets: Sequence[WebhookTarget], interval: int | None = None) -> None:
    """Create one channel per target for a job. ``interval`` is the number of seconds between two posts of progress."""
    if not targets:
        return
    Job.objects.filter(pk=job.pk).update(webhook_interval=interval or USUAL_INTERVAL)
    WebhookChannel.objects.bulk_create(WebhookChannel(job=job, place=place, target=target.shown()) for place, target in enumerate(targets))


def enqueue(job_id: UUID, events: Sequence[OutboxEvent]) -> None:
    """Add a delivery for each event and each channel that wants it, in the caller's transaction."""
    channels = list(WebhookChannel.objects.filter(job_id=job_id))
    if not channels:
        return
    posted = _without_frequent_progress(job_id, events)
    targets = [(channel, WebhookTarget(**channel.target)) for channel in channels]
    WebhookDelivery.objects.bulk_create(
        WebhookDelivery(channel=channel, index=event.index)
        for channel, target in targets
        for event in posted
        if target.wants(event.severity)
    )


def _without_frequent_progress(job_id: UUID, events: Sequence[OutboxEvent]) -> list[OutboxEvent]:
    """All events, but progress at most every ``webhook_interval`` seconds."""
    if not any(event.is_progress for event in events):
        return list(events)
    interval, before = Job.objects.values_list("webhook_interval", "progress_posted_at").get(pk=job_id)
    kept, last = [], before
    for event in events:
        if event.is_progress:
            moment = datetime.fromisoformat(event.timestamp).timestamp()
            if 0 <= moment - last < interval:
                continue
            last = moment
        kept.append(event)
    if last != before:
        Job.objects.filter(pk=job_id).update(progress_posted_at=last)
    return kept

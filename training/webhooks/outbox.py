"""What waits to be posted. Rows enter in the transaction of the events that they are about: none is lost, none is invented."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from trainer_engine.contract.events import EventType
from trainer_engine.contract.options import TrainingOptions
from trainer_engine.contract.webhooks import WebhookTarget
from training.models import Job, WebhookChannel, WebhookDelivery

USUAL_INTERVAL = 10
"""Seconds between two posts of progress where nothing was chosen."""
Told = tuple[int, str, str, str]
"""Index, type, severity and timestamp of an event."""


def open_channels(job: Job, targets: Sequence[WebhookTarget], options: TrainingOptions | None) -> None:
    """One channel a target, frozen with the job."""
    if not targets:
        return
    chosen = options.hooks.webhook_reporting_interval if options else None
    Job.objects.filter(pk=job.pk).update(webhook_interval=chosen or USUAL_INTERVAL)
    WebhookChannel.objects.bulk_create(
        WebhookChannel(job=job, place=place, target=target.as_dict()) for place, target in enumerate(targets)
    )


def enqueue(job_id: UUID, events: Sequence[Told]) -> None:
    """A delivery for each channel that wants each event. The caller's transaction holds the events."""
    channels = list(WebhookChannel.objects.filter(job_id=job_id))
    if not channels:
        return
    posted = _without_frequent_progress(job_id, events)
    targets = [(channel, WebhookTarget(**channel.target)) for channel in channels]
    WebhookDelivery.objects.bulk_create(
        WebhookDelivery(channel=channel, index=index)
        for channel, target in targets
        for index, _, severity, _ in posted
        if target.wants(severity)
    )


def _without_frequent_progress(job_id: UUID, events: Sequence[Told]) -> list[Told]:
    """Progress events at least ``webhook_interval`` seconds after one another; all others."""
    progress = EventType.PROGRESS.value
    if not any(kind == progress for _, kind, _, _ in events):
        return list(events)
    interval, last = Job.objects.values_list("webhook_interval", "progress_posted_at").get(pk=job_id)
    kept: list[Told] = []
    for event in events:
        if event[1] == progress:
            moment = datetime.fromisoformat(event[3]).timestamp()
            if 0 <= moment - last < interval:
                continue
            last = moment
        kept.append(event)
    Job.objects.filter(pk=job_id).update(progress_posted_at=last)
    return kept

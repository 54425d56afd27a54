"""The event log of a job. It is append-only and assigns an index to each event."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F

from trainer_engine.contract.events import ErrorEvent, JournalEntry, Notification, Severity, StatusEvent, utc_now
from trainer_engine.contract.events import Event as ContractEvent
from training.jobs import transitions
from training.models import TERMINAL, Event, Job, Status
from training.webhooks import outbox
from training.webhooks.outbox import OutboxEvent

logger = logging.getLogger("training.runs")
REPORTED = {
    Status.STARTING: "starts",
    Status.STOPPING: "stops after a checkpoint",
    Status.COMPLETED: "is complete",
    Status.STOPPED: "was stopped",
    Status.CANCELLED: "was cancelled",
    Status.ERROR: "failed",
}
"""Status -> what the server's terminal says about a run that gets it."""


@dataclass(frozen=True)
class NewEvent:
    """An event that is not in the log yet and so has no index."""

    type: str
    payload: dict[str, Any]
    severity: str = "info"
    timestamp: str = field(default_factory=utc_now)
    seq: int | None = None


def from_journal(entry: JournalEntry) -> NewEvent:
    """An event from the engine's journal."""
    payload = {"title": entry.title, "message": entry.message, "body": entry.body, "data": entry.data, **entry.extra}
    return NewEvent(entry.type, payload, entry.severity, entry.timestamp, entry.seq)


def from_server(event: ContractEvent) -> NewEvent:
    """An event that the server itself adds."""
    payload = {"title": event.title, "message": event.message, "body": event.body, "data": event.data(), **event.added()}
    return NewEvent(event.type.value, payload, event.severity.value)


def status_event(status: Status, message: str = "", *, title: str = "") -> NewEvent:
    severity = Severity.ERROR if status is Status.ERROR else Severity.INFO
    return from_server(StatusEvent(status=status.value, title=title or f"Training {status.label}", message=message, severity=severity))


def error_event(code: str, message: str, hint: str = "") -> NewEvent:
    return from_server(ErrorEvent(code=code, title="Training failed", message=message, hint=hint))


def warning_event(code: str, message: str) -> NewEvent:
    return from_server(Notification(code=code, title="Warning", message=message, severity=Severity.WARNING))


def append(job_id: UUID, events: Sequence[NewEvent]) -> None:
    """Add events to the log under the next free indexes: all of them or none."""
    with transaction.atomic():
        Job.objects.filter(pk=job_id).update(next_index=F("next_index") + len(events))
        end = Job.objects.values_list("next_index", flat=True).get(pk=job_id)
        insert(job_id, events, first_index=end - len(events))


def insert(job_id: UUID, events: Sequence[NewEvent], *, first_index: int) -> None:
    """Write rows whose indexes the caller has reserved in the same transaction."""
    Event.objects.bulk_create(
        Event(
            job_id=job_id,
            index=index,
            seq=event.seq,
            type=event.type,
            timestamp=event.timestamp,
            severity=event.severity,
            payload=event.payload,
        )
        for index, event in enumerate(events, start=first_index)
    )
    numbered = enumerate(events, start=first_index)
    outbox.enqueue(job_id, [OutboxEvent.of(index, event.type, event.severity, event.timestamp, event.payload) for index, event in numbered])


def move(job_id: UUID, to: Status, events: Sequence[NewEvent], **changes: Any) -> bool:
    """Change a job's status and add the events about it in one transaction. Returns whether this call moved the job."""
    with transaction.atomic():
        if not transitions.move(job_id, to, **changes):
            return False
        append(job_id, events)
        if to in REPORTED:
            transaction.on_commit(partial(_report, job_id, to))
    return True


def _report(job_id: UUID, to: Status) -> None:
    """A line on the server's terminal about a run that starts, ends or fails."""
    job = Job.objects.only("number", "environment", "message").filter(pk=job_id).first()
    if job is None:
        return
    name = f"Run {job.number}" + (f" ({job.environment})" if job.environment else "")
    words = " ".join(["", *job.message.split()]) if to in TERMINAL else ""
    logger.log(logging.ERROR if to is Status.ERROR else logging.INFO, "%s %s.%s", name, REPORTED[to], words)

"""The event log: where an index is given. Append only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F

from trainer_engine.contract.events import ErrorEvent, JournalEntry, Notification, Severity, StatusEvent, utc_now
from trainer_engine.contract.events import Event as ContractEvent
from training.jobs import transitions
from training.models import Event, Job, Status
from training.webhooks import outbox
from training.webhooks.outbox import Told


@dataclass(frozen=True)
class Draft:
    """An event that has no index yet."""

    type: str
    payload: dict[str, Any]
    severity: str = "info"
    timestamp: str = field(default_factory=utc_now)
    seq: int | None = None


def from_journal(entry: JournalEntry) -> Draft:
    """An event that the engine wrote."""
    payload = {"title": entry.title, "message": entry.message, "body": entry.body, "data": entry.data, **entry.extra}
    return Draft(entry.type, payload, entry.severity, entry.timestamp, entry.seq)


def from_server(event: ContractEvent) -> Draft:
    """An event that the server itself has to tell."""
    payload = {"title": event.title, "message": event.message, "body": event.body, "data": event.data(), **event.added()}
    return Draft(event.type.value, payload, event.severity.value)


def status_draft(status: Status, message: str = "", *, title: str = "") -> Draft:
    severity = Severity.ERROR if status is Status.ERROR else Severity.INFO
    return from_server(StatusEvent(status=status.value, title=title or f"Training {status.label}", message=message, severity=severity))


def error_draft(code: str, message: str, hint: str = "") -> Draft:
    return from_server(ErrorEvent(code=code, title="Training failed", message=message, hint=hint))


def warning_draft(code: str, message: str) -> Draft:
    return from_server(Notification(code=code, title="Warning", message=message, severity=Severity.WARNING))


def append(job_id: UUID, drafts: Sequence[Draft]) -> None:
    """Give the next indexes to these events. All of them enter the log, or none."""
    with transaction.atomic():
        Job.objects.filter(pk=job_id).update(next_index=F("next_index") + len(drafts))
        end = Job.objects.values_list("next_index", flat=True).get(pk=job_id)
        insert(job_id, drafts, first_index=end - len(drafts))


def insert(job_id: UUID, drafts: Sequence[Draft], *, first_index: int) -> None:
    """Write rows whose indexes the caller has reserved in the same transaction."""
    Event.objects.bulk_create(
        Event(
            job_id=job_id,
            index=index,
            seq=draft.seq,
            type=draft.type,
            timestamp=draft.timestamp,
            severity=draft.severity,
            payload=draft.payload,
        )
        for index, draft in enumerate(drafts, start=first_index)
    )
    numbered = enumerate(drafts, start=first_index)
    outbox.enqueue(job_id, [Told.of(index, draft.type, draft.severity, draft.timestamp, draft.payload) for index, draft in numbered])


def move(job_id: UUID, to: Status, drafts: Sequence[Draft], **changes: Any) -> bool:
    """A change of status and what the log says about it, in one transaction. Whether this call moved the job."""
    with transaction.atomic():
        if not transitions.move(job_id, to, **changes):
            return False
        append(job_id, drafts)
    return True

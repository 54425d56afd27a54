"""Copies journal entries into the database: events with indexes, progress, stages and checkpoints. One transaction per reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from trainer_engine.contract.events import EventType, JournalEntry
from training.engine.journal import BrokenLine, Reading
from training.jobs import leases, log
from training.jobs.transitions import is_allowed
from training.models import ACTIVE, TERMINAL, Checkpoint, Job, Status

ENDS = frozenset(status.value for status in TERMINAL)


def ingest(job_id: UUID, owner: str, offset: int, reading: Reading) -> bool:
    """Store a reading that began at ``offset``, exactly once.

    Returns False and writes nothing if the run is no longer ours or its journal has been read past ``offset``.
    """
    with transaction.atomic():
        held = Job.objects.select_for_update().filter(pk=job_id, lease_owner=owner, journal_offset=offset, status__in=ACTIVE)
        before = held.values("status", "journal_seq", "startup", "next_index").first()
        if before is None:
            return False
        folded = _fold(reading, before["status"], before["journal_seq"], before["startup"])
        Job.objects.filter(pk=job_id).update(
            journal_offset=reading.offset,
            next_index=F("next_index") + len(folded.events),
            lease_until=timezone.now() + leases.LEASE,
            **folded.changes,
        )
        log.insert(job_id, folded.events, first_index=before["next_index"])
        for values in folded.checkpoints:
            Checkpoint.objects.update_or_create(job_id=job_id, name=values.pop("name"), defaults=values)
    return True


@dataclass
class _Folded:
    """The database changes that follow from a reading."""

    status: str
    seq: int
    startup: dict[str, Any]
    events: list[log.NewEvent] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)

    def take(self, entry: JournalEntry) -> None:
        if entry.seq <= self.seq:
            return
        self.seq = self.changes["journal_seq"] = entry.seq
        if entry.type == EventType.STATUS.value and not self._moves(str(entry.data.get("status", ""))):
            return
        self._note(entry)
        self.events.append(log.from_journal(entry))

    def _moves(self, status: str) -> bool:
        """Whether an entry changes the status. The server sets terminal statuses itself, once the process is gone."""
        if status in ENDS or not is_allowed(self.status, status):
            return False
        self.status = self.changes["status"] = status
        return True

    def _note(self, entry: JournalEntry) -> None:
        if entry.type == EventType.PROGRESS.value:
            if self._moves(Status.RUNNING.value):
                self.events.append(log.status_event(Status.RUNNING))
            self.changes["progress"] = entry.data
        elif entry.type == EventType.STAGE.value:
            self._note_stage(entry.extra.get("stage"))
        elif entry.type == EventType.CHECKPOINT.value:
            self._note_checkpoint(entry.extra.get("checkpoint"))

    def _note_stage(self, stage: Any) -> None:
        if not isinstance(stage, dict) or not isinstance(stage.get("progress"), dict):
            return
        progress = stage["progress"]
        shown = {
            "label": stage.get("label", ""),
            "progress_type": "counted" if progress.get("total") else "indeterminate",
            "status": stage.get("status", ""),
            "percent": progress.get("percent", 0.0),
            "current": progress.get("current", 0),
            "total": progress.get("total", 0),
        }
        self.startup = self.changes["startup"] = {**self.startup, str(stage.get("key", "")): shown}

    def _note_checkpoint(self, checkpoint: Any) -> None:
        if not isinstance(checkpoint, dict) or not checkpoint.get("path"):
            return
        name = Path(str(checkpoint["path"])).name
        self.changes["checkpoint"] = name
        self.checkpoints.append(
            {
                "name": name[:255],
                "path": str(checkpoint["path"]),
                "step": int(checkpoint.get("step") or 0),
                "is_final": bool(checkpoint.get("is_final")),
                "size_bytes": int(checkpoint.get("size_bytes") or 0),
            }
        )


def _fold(reading: Reading, status: str, seq: int, startup: dict[str, Any]) -> _Folded:
    folded = _Folded(status, seq, dict(startup))
    for entry in reading.entries:
        if isinstance(entry, BrokenLine):
            message = f"A line of the run's journal, at byte {entry.offset}, could not be read: {entry.reason}."
            folded.events.append(log.warning_event("broken_journal_line", message))
        else:
            folded.take(entry)
    return folded

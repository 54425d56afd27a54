"""Which job a request means that names none."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Case, F, IntegerField, Value, When

from training.models import ACTIVE, Job, Status

RANK = Case(
    When(status__in=ACTIVE, then=Value(0)), When(status=Status.QUEUED, then=Value(1)), default=Value(2), output_field=IntegerField()
)
LATEST_END = F("finished_at").desc(nulls_last=True)


def current_job() -> Job | None:
    """The oldest running job; else the head of the queue; else the job that ended last; None where there never was one."""
    return Job.objects.order_by(RANK, LATEST_END, "number").first()


def find_job(text: str) -> Job | None:
    """A job by its id as somebody typed it."""
    try:
        return Job.objects.filter(pk=UUID(text)).first()
    except ValueError:
        return None

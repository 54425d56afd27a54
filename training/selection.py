"""Which job a request means that names none."""

from __future__ import annotations

from uuid import UUID

from django.db.models import Case, IntegerField, Value, When

from training.models import ACTIVE, Job, Status

QUEUED_LAST = Case(When(status=Status.QUEUED, then=Value(1)), default=Value(0), output_field=IntegerField())


def current_job() -> Job | None:
    """The oldest running job; else the head of the queue; else the job that ended last; None where there never was one."""
    unfinished = Job.objects.filter(status__in=(*ACTIVE, Status.QUEUED)).order_by(QUEUED_LAST, "number").first()
    return unfinished or Job.objects.order_by("-finished_at", "-number").first()


def find_job(text: str) -> Job | None:
    """A job by its id as somebody typed it."""
    try:
        return Job.objects.filter(pk=UUID(text)).first()
    except ValueError:
        return None

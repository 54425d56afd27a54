"""Which worker follows a run. A lease is an owner and an expiry time on the job, changed by conditional UPDATEs only."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID, uuid4

from django.db.models import Q, QuerySet
from django.utils import timezone

from training.models import ACTIVE, Job

LEASE = timedelta(seconds=6)
"""How long a run stays unattended after its follower was killed."""
CLOCK_TOLERANCE = timedelta(seconds=30)
"""A lease that ends later than this was written before the clock was set back, and counts as expired."""


def new_owner() -> str:
    return uuid4().hex


def is_free(now: datetime) -> Q:
    """Jobs without a valid lease."""
    return Q(lease_until=None) | Q(lease_until__lte=now) | Q(lease_until__gt=now + LEASE + CLOCK_TOLERANCE)


def claim(job_id: UUID, owner: str) -> bool:
    """Take over a run that has no holder or was offered by its holder. Returns whether it is ours now."""
    now = timezone.now()
    free = Job.objects.filter(is_free(now), pk=job_id, status__in=ACTIVE)
    return free.update(lease_owner=owner, lease_until=now + LEASE) == 1


def renew(job_id: UUID, owner: str) -> bool:
    """Whether the run is still ours."""
    return _held(job_id, owner).update(lease_until=timezone.now() + LEASE) == 1


def offer(job_id: UUID, owner: str) -> bool:
    """Let another worker take the run while we still follow it, so that there is no gap. Returns whether it is still ours."""
    return _held(job_id, owner).update(lease_until=timezone.now()) == 1


def release(job_id: UUID, owner: str) -> None:
    _held(job_id, owner).update(lease_owner="", lease_until=None)


def _held(job_id: UUID, owner: str) -> QuerySet[Job]:
    return Job.objects.filter(pk=job_id, lease_owner=owner, status__in=ACTIVE)

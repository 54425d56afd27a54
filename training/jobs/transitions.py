"""Which status may follow which. Every status change is one conditional UPDATE."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from uuid import UUID

from training.models import ACTIVE, TERMINAL, Job, Status

MOVES: Mapping[Status, tuple[Status, ...]] = MappingProxyType(
    {
        Status.STARTING: (Status.QUEUED,),
        Status.RUNNING: (Status.STARTING,),
        Status.STOPPING: (Status.STARTING, Status.RUNNING),
        Status.COMPLETED: ACTIVE,
        Status.STOPPED: ACTIVE,
        Status.CANCELLED: (Status.QUEUED, *ACTIVE),
        Status.ERROR: ACTIVE,
    }
)
"""Status -> the statuses from which it can be reached. There is no way back, and none out of a terminal status."""


def move(job_id: UUID, to: Status, **changes: Any) -> bool:
    """Move a job unless another process has already moved it elsewhere. Returns whether this call moved it."""
    movable = Job.objects.filter(pk=job_id, status__in=MOVES[to])
    return movable.update(status=to, **changes) == 1


def is_allowed(before: str, after: str) -> bool:
    """Whether the graph has this edge."""
    return any(after == to.value and before in sources for to, sources in MOVES.items())


__all__ = ["ACTIVE", "MOVES", "TERMINAL", "is_allowed", "move"]

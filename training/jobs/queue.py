"""The queue: jobs start in the order in which they came unless one is moved, as many at a time as there are slots.

django-q2 may deliver a task twice, late or never, so each task checks for itself what has to be done.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, IntegerField, Max, Q, QuerySet, Value, When
from django.utils import timezone
from django_q.tasks import async_task

from training.errors import NotQueued
from training.jobs import leases, log
from training.models import ACTIVE, Job, QueueLock, Status

LOCK_ID = 1


def lock() -> None:
    """Make other workers that claim jobs wait until this transaction ends (on SQLite, IMMEDIATE transactions do so anyway)."""
    QueueLock.objects.get_or_create(pk=LOCK_ID)
    QueueLock.objects.select_for_update().get(pk=LOCK_ID)


def occupied() -> QuerySet[Job]:
    """Jobs that hold a slot. A cancelled run holds its slot until its process is gone, because the device is busy until then."""
    return Job.objects.filter(Q(status__in=ACTIVE) | Q(engine_pid__isnull=False))


def next_number() -> int:
    """The number of the next job; the caller holds the lock."""
    return (Job.objects.aggregate(last=Max("number"))["last"] or 0) + 1


def has_work() -> bool:
    """Whether a job waits and a slot is free."""
    return Job.objects.filter(status=Status.QUEUED).exists() and occupied().count() < settings.SLOTS


def claim_next(owner: str) -> Job | None:
    """Move the first job of the queue that can run to ``starting`` and give its lease to ``owner``; None without a job or a slot.

    Two runs never write to one output folder at the same time: such a job waits, and the one behind it may pass.
    """
    with transaction.atomic():
        lock()
        running = list(occupied().values_list("output_dir", flat=True))
        if len(running) >= settings.SLOTS:
            return None
        job = Job.objects.filter(status=Status.QUEUED).exclude(output_dir__in=running).order_by("turn").first()
        if job is None:
            return None
        now = timezone.now()
        events = [log.status_event(Status.STARTING, "A worker has taken the job and starts its engine.")]
        if not log.move(job.pk, Status.STARTING, events, started_at=now, lease_owner=owner, lease_until=now + leases.LEASE):
            return None
        job.refresh_from_db()
        return job


def position(job: Job) -> int | None:
    """Place among the jobs that wait for a slot, from 1; None for a job that runs, has ended, or has a free slot waiting."""
    if job.status != Status.QUEUED:
        return None
    free = max(0, settings.SLOTS - occupied().count())
    place = Job.objects.filter(status=Status.QUEUED, turn__lte=job.turn).count() - free
    return place if place > 0 else None


def positions() -> dict[UUID, int]:
    """The position of every job that waits for a slot, with as many questions to the database for a thousand as for one."""
    free = max(0, settings.SLOTS - occupied().count())
    return {pk: place for place, pk in enumerate(waiting().values_list("pk", flat=True), start=1 - free) if place > 0}


def is_about_to_start(job: Job) -> bool:
    """Whether a queued job has a free slot waiting."""
    return job.status == Status.QUEUED and position(job) is None


def waiting() -> QuerySet[Job]:
    return Job.objects.filter(status=Status.QUEUED).order_by("turn")


def move(job: Job, place: int) -> None:
    """Give a waiting job another place among the waiting ones, from 1; beyond the last it becomes the last. Raises NotQueued."""
    with transaction.atomic():
        lock()
        rows = list(waiting().values_list("pk", "turn"))
        order = [pk for pk, _ in rows if pk != job.pk]
        if len(order) == len(rows):
            raise NotQueued(Job.objects.get(pk=job.pk))
        order.insert(place - 1, job.pk)
        for pk, (before, turn) in zip(order, rows, strict=True):
            if pk != before:
                Job.objects.filter(pk=pk).update(turn=turn)


def reconcile_is_due(interval: timedelta) -> bool:
    """Whether the last reconciliation is that long ago. The caller that gets True reconciles."""
    now = timezone.now()
    QueueLock.objects.get_or_create(pk=LOCK_ID)
    due = QueueLock.objects.filter(Q(looked_at=None) | Q(looked_at__lte=now - interval) | Q(looked_at__gt=now + interval), pk=LOCK_ID)
    return due.update(looked_at=now) == 1


def unattended() -> list[UUID]:
    """Active runs whose lease has run out."""
    return list(Job.objects.filter(leases.is_free(timezone.now()), status__in=ACTIVE).values_list("pk", flat=True))


def enqueue_next() -> None:
    """Have a worker take the next job if one waits and a slot is free."""
    if has_work():
        async_task("training.tasks.run_job", task_name="run_job")


def enqueue_follow(job_id: UUID) -> None:
    """Have a worker follow a run for a slice."""
    async_task("training.tasks.follow_job", str(job_id), task_name=f"follow {str(job_id)[:8]}")


RANK = Case(
    When(status__in=ACTIVE, then=Value(0)), When(status=Status.QUEUED, then=Value(1)), default=Value(2), output_field=IntegerField()
)
LATEST_END = F("finished_at").desc(nulls_last=True)


def current_job() -> Job | None:
    """The oldest running job, else the head of the queue, else the job that ended last; None before the first job."""
    return Job.objects.order_by(RANK, LATEST_END, "turn").first()


def find_job(text: str) -> Job | None:
    """A job by the text of its id; None if there is none."""
    try:
        return Job.objects.filter(pk=UUID(text)).first()
    except ValueError:
        return None

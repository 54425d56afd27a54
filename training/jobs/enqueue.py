"""Put work into django-q2's queue. Every task may be delivered twice, late or never: each one looks for itself what is to be done."""

from __future__ import annotations

from uuid import UUID

from django_q.tasks import async_task

from training.jobs import queue


def enqueue_next() -> None:
    """Have a worker take the next job, where one waits and a slot is free."""
    if queue.has_work():
        async_task("training.tasks.run_job", task_name="run_job")


def enqueue_follow(job_id: UUID) -> None:
    """Have a worker look after a run for a slice."""
    async_task("training.tasks.follow_job", str(job_id), task_name=f"follow {str(job_id)[:8]}")

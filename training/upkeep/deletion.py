"""Removes a job that has ended: its events, webhooks, secrets and run folder. Results of training in ``output_dir`` always stay."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from django.db import transaction

from environments.home import current_home
from environments.secrets import store
from training.engine import process
from training.errors import TrainingRefused, writing
from training.models import TERMINAL, Event, Job, WebhookDelivery

ROWS_AT_ONCE = 20_000
"""Rows that one transaction deletes, so that runs can write between two of them."""


class JobIsActive(TrainingRefused):
    """The job waits or trains, so it cannot be deleted."""

    status_code = 409

    def __init__(self, job: Job) -> None:
        super().__init__(f"Job {job.pk} is {job.status}. Cancel it first: POST /api/training/cancel with its job_id.")


def delete_job(job: Job) -> None:
    """Delete an ended job. Checkpoints, results and caches stay. It can be repeated if it was interrupted. Raises JobIsActive."""
    fresh = Job.objects.filter(pk=job.pk).first()
    if fresh is None:
        return
    if fresh.status not in TERMINAL or (fresh.engine is not None and process.is_alive(fresh.engine)):
        raise JobIsActive(fresh)
    while fresh.next_index and _delete_some(fresh):
        pass
    with transaction.atomic():
        Job.objects.filter(pk=fresh.pk, status__in=TERMINAL).delete()
    with writing():
        store.write(current_home(), store.of_job(fresh.pk), {})
    remove_run_folder(Path(fresh.run_dir))


def _delete_some(job: Job) -> bool:
    """Delete some of the events and deliveries of a job. Returns whether there were any."""
    with transaction.atomic():
        posts = WebhookDelivery.objects.filter(channel__job=job).values_list("pk", flat=True)[:ROWS_AT_ONCE]
        count, _ = WebhookDelivery.objects.filter(pk__in=list(posts)).delete()
    with transaction.atomic():
        rows = Event.objects.filter(job=job).order_by("index").values_list("index", flat=True)
        last = list(rows[:ROWS_AT_ONCE])[-1:]
        for index in last:
            Event.objects.filter(job=job, index__lte=index).delete()
    return bool(count or last)


def remove_run_folder(folder: Path) -> bool:
    """Remove a folder of ``state/runs``, and nothing else. Returns whether it was there. Links are not followed."""
    runs = os.path.realpath(current_home().state / "runs")
    if os.path.realpath(folder) != os.path.join(runs, folder.name) or folder.is_symlink() or not folder.is_dir():  # noqa: PTH118
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True

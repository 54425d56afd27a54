"""Finds runs without a follower and slots without a run, every two seconds.

django-q2 forgets a task whose worker was killed, and its schedules have a resolution of minutes. So each worker process has a
thread that reconciles; a row in the database makes sure that only one of them does so at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, connection
from django_q.tasks import async_task

from environments.home import current_home
from trainer_engine.contract.atomic import PRIVATE_MODE
from training.engine import process
from training.jobs import outcome, queue
from training.jobs.queue import enqueue_follow, enqueue_next
from training.models import TERMINAL, Job

INTERVAL = timedelta(seconds=2)
PRUNE_INTERVAL = timedelta(days=1)
PRUNED = "pruned"
"""File in ``state/`` whose time is that of the last pass over ended runs."""
logger = logging.getLogger(__name__)


def begin_in_worker(**_signal: Any) -> None:
    """Called by django-q2 in each new worker process."""
    threading.Thread(target=_watch, name="reconciler", daemon=True).start()


def _watch() -> None:
    pause = threading.Event()
    while True:
        try:
            process.reap_children()
            if queue.reconcile_is_due(INTERVAL - timedelta(milliseconds=200)):
                reconcile()
        except DatabaseError as error:
            logger.warning("reconciling the runs failed, trying again: %s", error)
            connection.close()
        pause.wait(INTERVAL.total_seconds())


def prune_is_due() -> bool:
    """Whether the last pass over ended runs was a day ago. Only one caller a day gets a yes; the first one a day after the first start."""
    mark = current_home().state / PRUNED
    try:
        if time.time() - mark.stat().st_mtime < PRUNE_INTERVAL.total_seconds():
            return False
        mark.touch(mode=PRIVATE_MODE)
    except FileNotFoundError:
        mark.touch(mode=PRIVATE_MODE)
        return False
    return True


def reconcile() -> int:
    """Have unattended runs followed, free the slots of ended ones, and start waiting jobs. Returns the number of unattended runs."""
    alone = queue.unattended()
    for job_id in alone:
        enqueue_follow(job_id)
    for job in Job.objects.filter(status__in=TERMINAL, engine_pid__isnull=False):
        outcome.release_engine(job.pk, job.engine, job.folder)
    if prune_is_due():
        async_task("training.tasks.prune_ended_runs")
    enqueue_next()
    return len(alone)

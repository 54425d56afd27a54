"""The tasks of django-q2. It may run one twice, late or never: each task claims its work, and the reconciler finds what was lost."""

from __future__ import annotations

import logging
from uuid import UUID

from training.jobs import leases, queue
from training.jobs.follower import Follower
from training.jobs.queue import enqueue_next
from training.models import Job
from training.upkeep import caches
from training.upkeep.prune import PrunePolicy, prune

logger = logging.getLogger(__name__)


def run_job() -> str:
    """Take the first job of the queue that can run, start its engine and follow it for a slice."""
    owner = leases.new_owner()
    job = queue.claim_next(owner)
    if job is None:
        return "nothing to run"
    enqueue_next()
    _follow(job, owner)
    return str(job.pk)


def follow_job(job_id: str) -> str:
    """Follow a run for a slice, unless another worker does."""
    owner = leases.new_owner()
    if not leases.claim(UUID(job_id), owner):
        return "not needed"
    _follow(Job.objects.get(pk=job_id), owner)
    return job_id


def care_for_caches(task_id: str) -> str:
    """Start the process that verifies or cleans caches, unless another worker has."""
    return task_id if caches.run(task_id) else "not needed"


def prune_ended_runs() -> str:
    """Apply the policy for ended runs, and have caches cleaned if the policy limits them."""
    policy = PrunePolicy.of_settings()
    pruned = prune(policy, remove_now=True)
    if policy.cleans_caches:
        try:
            caches.begin(caches.gc_job(policy.keep_cache_days or None, policy.keep_cache_gb or None, remove_now=True))
        except caches.TooManyTasks as refusal:
            logger.warning("caches are not cleaned today: %s", refusal)
    return str(pruned)


def _follow(job: Job, owner: str) -> None:
    try:
        Follower(job, owner).follow()
    except Exception:
        # The run continues without this task. Once the lease is released, the reconciler has it followed again within seconds.
        logger.exception("following job %s failed", job.pk)
        leases.release(job.pk, owner)

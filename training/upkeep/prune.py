"""What is removed of runs that ended long ago, and when: the policy, and one pass of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings

from environments.home import current_home
from training.models import TERMINAL, Job
from training.upkeep.deletion import remove_run_folder
from training.upkeep.thinning import has_ended, last_change, thin_events, thin_journal

DAY = 86_400
GB = 1_000_000_000


@dataclass(frozen=True)
class PrunePolicy:
    """How long what is kept. 0 means for ever, or without a limit."""

    thin_events_days: float = 30
    """Progress events of runs that ended before this are thinned."""
    keep_runs_days: float = 0
    """Folders of ``state/runs`` of runs that ended before this are removed."""
    keep_runs_gb: float = 0
    """The folders of the oldest ended runs are removed until ``state/runs`` takes no more than this."""
    keep_cache_days: float = 0
    """Cache entries that no run has used for this long are removed."""
    keep_cache_gb: float = 0
    """The cache entries that were not used for longest are removed until all caches take no more than this."""

    @classmethod
    def of_settings(cls) -> PrunePolicy:
        return cls(**settings.PRUNE)

    @property
    def cleans_caches(self) -> bool:
        return bool(self.keep_cache_days or self.keep_cache_gb)


@dataclass
class Pruned:
    """What a pass has removed, or would."""

    is_done: bool
    """False for a dry run, which counts folders, and runs instead of their events."""
    thinned_runs: int = 0
    thinned_events: int = 0
    removed_folders: int = 0
    bytes: int = 0
    """Bytes of files; rows of the database are not counted."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class EndedRun(NamedTuple):
    """A folder of ``state/runs`` whose run has ended."""

    ended: float
    """Seconds since 1970."""
    folder: Path
    job: Job | None
    """None for a run of the command line, or of a job that is gone."""


def prune(policy: PrunePolicy, *, remove_now: bool, now: float | None = None) -> Pruned:
    """One pass over the runs that have ended; caches are cleaned elsewhere. Harmless when it is repeated. Raises OSError."""
    today = time.time() if now is None else now
    result = Pruned(remove_now)
    runs = sorted(ended_runs(), key=lambda run: run.ended)
    sizes = {run.folder: size_of(run.folder) for run in runs}
    total = sum(sizes.values())
    for run in runs:
        is_old = policy.keep_runs_days and today - run.ended > policy.keep_runs_days * DAY
        if is_old or (policy.keep_runs_gb and total > policy.keep_runs_gb * GB):
            total -= sizes[run.folder]
            result.bytes += sizes[run.folder]
            result.removed_folders += not remove_now or remove_run_folder(run.folder)
        elif policy.thin_events_days and today - run.ended > policy.thin_events_days * DAY:
            _thin(run, result)
    for job in Job.objects.filter(status__in=TERMINAL, finished_at__isnull=False):
        if policy.thin_events_days and job.finished_at and today - job.finished_at.timestamp() > policy.thin_events_days * DAY:
            removed = thin_events(job) if remove_now else 0
            result.thinned_events += removed
            result.thinned_runs += bool(removed) or not remove_now
    return result


def _thin(run: EndedRun, result: Pruned) -> None:
    if result.is_done:
        result.bytes += thin_journal(run.folder / "journal.jsonl")


def ended_runs() -> Iterator[EndedRun]:
    """The run folders of this home whose run has ended and whose process is gone."""
    runs = current_home().state / "runs"
    jobs = {str(job.pk): job for job in Job.objects.all()}
    for folder in sorted(runs.iterdir()) if runs.is_dir() else ():
        job = jobs.get(_job_id(folder.name))
        if folder.is_symlink() or not folder.is_dir():
            continue
        if job is None and has_ended(folder):
            yield EndedRun(last_change(folder), folder, None)
        elif job is not None and job.status in TERMINAL and job.engine is None:
            yield EndedRun(job.finished_at.timestamp() if job.finished_at else last_change(folder), folder, job)


def _job_id(name: str) -> str:
    try:
        return str(UUID(name))
    except ValueError:
        return ""


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())

"""The caches that the server knows: those of its jobs and environments, as far as the path rule lets runs write there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.db import transaction
from django_q.tasks import async_task
from pydantic import ValidationError

from environments.home import current_home
from environments.models import Environment
from environments.resolve.run import resolve_run
from trainer_engine.contract.atomic import PRIVATE_FOLDER_MODE, write_atomically
from trainer_engine.datasets.shards.__main__ import FAILED, RUNNING, CareAnswer, CareJob
from trainer_engine.datasets.shards.stock import is_cache
from training.errors import TrainingRefused
from training.jobs.queue import lock
from training.models import Job

ENTRY_FOLDERS = ("cache_dir_vae", "cache_dir")
"""Fields of datasets that hold the folder of a cache."""
ANSWERS = "upkeep"
"""Folder in ``state/`` with the answers of long jobs."""
KEPT_ANSWERS = 50
GONE_SECONDS = 600.0
"""A running job writes how far it is more often than this."""
QUEUED = "queued"
MOST_AT_ONCE = 3
"""Jobs on caches that wait or run at a time: each reads the disk with a process of its own."""
GB = 1_000_000_000


def known_caches() -> list[Path]:
    """The folders of caches, without those that a link or a new rule has closed since."""
    rule = current_home().place_rule
    found = dict.fromkeys(os.path.realpath(folder) for folder in _named() if Path(folder).is_absolute())
    return [path for path in map(Path, sorted(found)) if rule.refusal(path, writing=True) is None and is_cache(path)]


def _named() -> Iterator[str]:
    for datasets in Job.objects.values_list("datasets", flat=True):
        yield from (str(entry[name]) for entry in datasets for name in ENTRY_FOLDERS if isinstance(entry.get(name), str))
    home = current_home()
    for environment in Environment.objects.all():
        dataloader = resolve_run(home, environment.config, {}).dataloader
        if dataloader is not None:
            yield from (images.vae_cache for images in dataloader.sets_of_images)
            yield from (references.vae_cache for references in dataloader.reference_sets)
            yield from (text.text_cache for text in dataloader.text_sets)


@dataclass(frozen=True)
class CareTask:
    """A long job on caches, and how far it is."""

    id: str
    answer: CareAnswer

    def as_dict(self) -> dict[str, Any]:
        return {"task_id": self.id, **self.answer.model_dump()}


def gc_job(unused_days: float | None, keep_gb: float | None, *, remove_now: bool) -> CareJob:
    """A job that cleans all known caches."""
    keep_bytes = None if keep_gb is None else int(keep_gb * GB)
    folders = tuple(map(str, known_caches()))
    return CareJob(action="gc", folders=folders, unused_days=unused_days, keep_bytes=keep_bytes, remove_now=remove_now)


def verify_job() -> CareJob:
    """A job that verifies all known caches."""
    return CareJob(action="verify", folders=tuple(map(str, known_caches())))


class TooManyTasks(TrainingRefused):
    """Enough jobs on caches wait or run."""

    status_code = 409

    def __init__(self) -> None:
        super().__init__(f"{MOST_AT_ONCE} tasks on caches wait or run already. Ask again once one of them has ended.")


def begin(job: CareJob) -> CareTask:
    """Have a job on caches done by a worker; one that waits or runs already is not done twice.

    Raises TooManyTasks, and OSError if its files cannot be written.
    """
    with transaction.atomic():
        lock()
        return _begin(job)


def _begin(job: CareJob) -> CareTask:
    folder = _answers()
    pending = [task for path in folder.glob("*.json") if (task := find(path.stem)) and _is_pending(path, task)]
    same = next((task for task in pending if _job_of(folder / task.id) == job), None)
    if same is not None:
        return same
    if len(pending) >= MOST_AT_ONCE:
        raise TooManyTasks
    task_id = str(uuid.uuid4())
    _forget_old(folder)
    write_atomically(folder / f"{task_id}.job", job.model_dump_json().encode())
    queued = CareAnswer(action=job.action, status=QUEUED)
    write_atomically(folder / f"{task_id}.json", queued.model_dump_json().encode())
    async_task("training.tasks.care_for_caches", task_id)
    return CareTask(task_id, queued)


def _is_pending(answer: Path, task: CareTask) -> bool:
    """Whether a job waits or runs; one that has waited for long was lost."""
    try:
        return task.answer.status in (QUEUED, RUNNING) and time.time() - answer.stat().st_mtime < GONE_SECONDS
    except FileNotFoundError:
        return False


def _job_of(stem: Path) -> CareJob | None:
    for suffix in (".job", ".taken"):
        with suppress(OSError, ValidationError):
            return CareJob.model_validate_json(stem.with_suffix(suffix).read_bytes())
    return None


def find(task_id: str) -> CareTask | None:
    """A job on caches; None if there is none of that id."""
    try:
        path = _answers() / f"{uuid.UUID(task_id)}.json"
        answer = CareAnswer.model_validate_json(path.read_bytes())
        is_silent = time.time() - path.stat().st_mtime > GONE_SECONDS
    except (ValueError, OSError, ValidationError):
        return None
    if answer.status == RUNNING and is_silent:
        answer = answer.model_copy(update={"status": FAILED, "message": "its process is gone; ask again"})
    return CareTask(task_id, answer)


def run(task_id: str) -> bool:
    """Start the process of a job on caches. Returns False if another worker has; the process outlives this one."""
    job = _answers() / f"{uuid.UUID(task_id)}.job"
    taken = job.with_suffix(".taken")
    try:
        job.rename(taken)
    except FileNotFoundError:
        return False
    command = [sys.executable, "-m", "trainer_engine.datasets.shards", str(taken), str(job.with_suffix(".json"))]
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    subprocess.Popen(command, start_new_session=True, **quiet)
    return True


def _answers() -> Path:
    folder = current_home().state / ANSWERS
    folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    return folder


def _forget_old(folder: Path) -> None:
    """Remove all but the newest answers."""
    newest = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest[KEPT_ANSWERS:]:
        if time.time() - path.stat().st_mtime > GONE_SECONDS:
            for suffix in (".json", ".job", ".taken"):
                path.with_suffix(suffix).unlink(missing_ok=True)

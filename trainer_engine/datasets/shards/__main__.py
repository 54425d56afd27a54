"""Verifies or cleans caches in a process of its own: ``python -m trainer_engine.datasets.shards JOB ANSWER``.

``JOB`` is a file with the folders and what is wanted. ``ANSWER`` is a file that always holds how far it is, and the result in the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.datasets.shards.collect import collect
from trainer_engine.datasets.shards.stock import verify

ANSWERED_SECONDS = 1.0
"""How often a long job writes how far it is."""
RUNNING, DONE, FAILED = "running", "done", "failed"


class CareJob(BaseModel):
    """What is wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: str
    """``verify`` or ``gc``."""
    folders: tuple[str, ...]
    unused_days: float | None = None
    keep_bytes: int | None = None
    remove_now: bool = False


class CareAnswer(BaseModel):
    """How far it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: str
    status: str
    done_bytes: int = 0
    total_bytes: int = 0
    result: dict[str, Any] | None = None
    message: str = ""
    """Why it failed."""


def care(job: CareJob, answer: Path) -> int:
    """Does what is wanted. Returns the exit code."""
    _write(answer, CareAnswer(action=job.action, status=RUNNING))
    try:
        result = _verified(job, answer) if job.action == "verify" else _collected(job, answer)
    except OSError as error:
        _write(answer, CareAnswer(action=job.action, status=FAILED, message=str(error.strerror or error)))
        return 1
    _write(answer, CareAnswer(action=job.action, status=DONE, result=dict(result)))
    return 0


def _verified(job: CareJob, answer: Path) -> Mapping[str, Any]:
    written = 0.0

    def advance(done: int, total: int) -> None:
        nonlocal written
        if time.monotonic() - written > ANSWERED_SECONDS:
            written = time.monotonic()
            _write(answer, CareAnswer(action=job.action, status=RUNNING, done_bytes=done, total_bytes=total))

    return {"caches": [verify(Path(folder), advance).as_dict() for folder in job.folders]}


def _collected(job: CareJob, answer: Path) -> Mapping[str, Any]:
    folders = [Path(folder) for folder in job.folders]
    limits: dict[str, Any] = {"unused_days": job.unused_days, "keep_bytes": job.keep_bytes, "remove_now": job.remove_now}
    return collect(folders, **limits, on_progress=lambda: _write(answer, CareAnswer(action=job.action, status=RUNNING))).as_dict()


def _write(answer: Path, content: CareAnswer) -> None:
    write_atomically(answer, content.model_dump_json().encode())


if __name__ == "__main__":
    sys.exit(care(CareJob.model_validate_json(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])))

"""The file ``state/worker.json``, by which other processes see that a worker is alive."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.files import read_document

CLOCK_SLACK_SECONDS = 2.0
"""Tolerance for start times, which the kernel derives from a clock that may be set."""


@dataclass(frozen=True)
class WorkerState:
    """A worker process; the start time tells it from another process with a reused id."""

    pid: int
    started_at: float


def _path(state: Path) -> Path:
    return state / "worker.json"


def write_worker_state(state: Path, pid: int) -> None:
    """Store the worker's state; called by the worker."""
    entry = WorkerState(pid, psutil.Process(pid).create_time())
    write_atomically(_path(state), json.dumps(asdict(entry)).encode())


def read_worker_state(state: Path) -> WorkerState | None:
    """The running worker; None if there is none on this machine."""
    try:
        entry = WorkerState(**read_document(_path(state).read_bytes()))
        process = psutil.Process(entry.pid)
        is_alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - entry.started_at) < CLOCK_SLACK_SECONDS
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
    return entry if is_alive else None

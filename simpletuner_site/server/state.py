"""What a worker leaves in ``state/worker.json``, so that other processes can see that it lives."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from trainer_engine.contract.atomic import write_atomically

CLOCK_SLACK_SECONDS = 2.0
"""The kernel derives a process's start time from the clock, which may be set meanwhile."""


@dataclass(frozen=True)
class WorkerState:
    """A worker process; the start time keeps a reused pid from being taken for it."""

    pid: int
    started_at: float


def _path(state: Path) -> Path:
    return state / "worker.json"


def write_worker_state(state: Path, pid: int) -> None:
    """Called by the worker itself."""
    entry = WorkerState(pid, psutil.Process(pid).create_time())
    write_atomically(_path(state), json.dumps(asdict(entry)).encode())


def read_worker_state(state: Path) -> WorkerState | None:
    """The worker that runs now; None where there is none, or none on this machine."""
    try:
        entry = WorkerState(**json.loads(_path(state).read_bytes()))
        process = psutil.Process(entry.pid)
        is_alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - entry.started_at) < CLOCK_SLACK_SECONDS
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
    return entry if is_alive else None

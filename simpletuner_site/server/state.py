"""The files ``state/worker.json`` and ``state/server.json``, by which other processes see that a worker or a server is alive."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from trainer_engine.contract.atomic import PRIVATE_MODE, write_atomically
from trainer_engine.contract.files import read_document

CLOCK_SLACK_SECONDS = 2.0
"""Tolerance for start times, which the kernel derives from a clock that may be set."""
WORKER, SERVER = "worker.json", "server.json"


@dataclass(frozen=True)
class WorkerState:
    """A worker process; the start time tells it from another process with a reused id."""

    pid: int
    started_at: float


@dataclass(frozen=True)
class ServerState(WorkerState):
    """A web process, and the address at which this machine reaches it."""

    url: str


State = TypeVar("State", bound=WorkerState)


def write_worker_state(state: Path, pid: int) -> None:
    """Store the worker's state; called by the worker."""
    _write(state / WORKER, WorkerState(pid, _started_at(pid)))


def write_server_state(state: Path, pid: int, url: str) -> None:
    """Store the server's state; called by the server."""
    _write(state / SERVER, ServerState(pid, _started_at(pid), url))


def read_worker_state(state: Path) -> WorkerState | None:
    """The running worker; None if there is none on this machine."""
    return _read(state / WORKER, WorkerState)


def read_server_state(state: Path) -> ServerState | None:
    """The running server; None if there is none on this machine."""
    return _read(state / SERVER, ServerState)


def _started_at(pid: int) -> float:
    return float(psutil.Process(pid).create_time())


def _write(path: Path, entry: WorkerState) -> None:
    write_atomically(path, json.dumps(asdict(entry)).encode(), mode=PRIVATE_MODE)


def _read(path: Path, kind: type[State]) -> State | None:
    try:
        entry = kind(**read_document(path.read_bytes()))
        process = psutil.Process(entry.pid)
        is_alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - entry.started_at) < CLOCK_SLACK_SECONDS
    except (OSError, ValueError, TypeError, psutil.Error):
        return None
    return entry if is_alive else None

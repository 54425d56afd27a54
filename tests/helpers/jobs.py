"""Jobs in the database and fake engines behind them."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

from django.db.models import Max
from django.utils import timezone

from training.engine import process
from training.engine.process import EngineIdentity
from training.jobs import leases
from training.models import Job, Status

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


def make_job(folder: Path, status: Status = Status.QUEUED, **values: Any) -> Job:
    """A job of its own folders; ``values`` replace fields."""
    job_id = uuid.uuid4()
    number = (Job.objects.aggregate(last=Max("number"))["last"] or 0) + 1
    defaults: dict[str, Any] = {
        "id": job_id,
        "number": number,
        "turn": number,
        "status": status,
        "output_dir": str(folder / f"output-{number}"),
        "run_dir": str(folder / "runs" / str(job_id)),
        "options": {"seed": 7},
    }
    return Job.objects.create(**{**defaults, **values})


def leased_job(folder: Path, owner: str = "me", status: Status = Status.STARTING, **values: Any) -> Job:
    """A job that ``owner`` looks after."""
    return make_job(folder, status, lease_owner=owner, lease_until=timezone.now() + leases.LEASE, started_at=timezone.now(), **values)


def fake_command(job: Job, behaviour: str = "completes", steps: int = 5, seconds: float = 0.01) -> list[str]:
    return [sys.executable, str(FAKE_ENGINE), "trainer_engine", job.run_dir, behaviour, str(steps), str(seconds)]


def start_fake(job: Job, behaviour: str = "completes", steps: int = 5, seconds: float = 0.01, *, note: bool = True) -> EngineIdentity:
    """Start a fake engine for a job and, with ``note``, write down which process it is."""
    identity = process.start(job.folder.create(), fake_command(job, behaviour, steps, seconds))
    if note:
        Job.objects.filter(pk=job.pk).update(
            engine_pid=identity.pid, engine_started_at=identity.started_at, engine_boot_id=identity.boot_id
        )
        job.refresh_from_db()
    return identity


def statuses(job: Job) -> list[str]:
    """The states that the log tells of, in order."""
    return [event.payload["data"]["status"] for event in job.events.filter(type="training.status").order_by("index")]

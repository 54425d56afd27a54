"""Jobs and events as the API shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from django.db.models import QuerySet, TextField
from django.db.models.functions import Cast

from trainer_engine.config.option import holds_json
from trainer_engine.config.options.secrets import hide_options
from trainer_engine.config.prompt_library import OPTION as PROMPT_LIBRARY
from trainer_engine.config.publishing import OPTION as PUBLISHING
from trainer_engine.config.webhooks import OPTION as WEBHOOKS
from trainer_engine.contract.best_checkpoint import best_of
from trainer_engine.contract.checkpoint_files import CheckpointInfo, list_checkpoints
from training.api import media
from training.jobs import queue
from training.models import Event, Job, Status

IDLE: dict[str, Any] = {
    "status": "idle",
    "config": {},
    "job_id": None,
    "job_info": None,
    "progress": None,
    "startup_progress": {},
}
LARGEST_PAGE_BYTES = 16 * 1024 * 1024
"""A page of events ends at this size, because images are large."""
FILES = "files"
"""Key in a job's plan for a dictionary of option -> the file that it was given as."""
COLUMNS = ("index", "type", "timestamp", "severity", "payload")
TEXT_COLUMNS = (*COLUMNS[:-1], "text")
MEDIA_MARKS = tuple(f'"{key}"' for key in media.ATTACHMENTS)


def iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def encoded(document: Any) -> str:
    """Compact JSON. Half a surrogate pair, which no client could be sent as UTF-8, stays an escape."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()


def job_status(job: Job | None) -> dict[str, Any]:
    """The shape of ``/status``."""
    if job is None:
        return IDLE
    return {
        "status": job.status,
        "config": {f"--{name}": value for name, value in shown_options(job).items()},
        "job_id": str(job.pk),
        "job_info": job_info(job, queue.position(job)),
        "progress": progress_of(job),
        "startup_progress": job.startup,
    }


def files_behind(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given as files and are frozen with their contents, for the job's plan. Answers show the path, not the contents."""
    text = given.get(PROMPT_LIBRARY)
    return {FILES: {PROMPT_LIBRARY: text}} if isinstance(text, str) and text and not holds_json(text) else {}


def shown_options(job: Job) -> dict[str, Any]:
    """The options of a job without secrets, by name without dashes."""
    with_secrets = {name: job.options[name] for name in (WEBHOOKS, PUBLISHING) if job.options.get(name)}
    # Rows of older versions hold the paths of webhooks.
    return {**job.options, **hide_options(with_secrets), **job.plan.get(FILES, {})}


def job_info(job: Job, queue_position: int | None) -> dict[str, Any]:
    failed = job.status == Status.ERROR
    return {
        "status": job.status,
        "message": job.message,
        "error": job.message if failed else None,
        "error_code": job.error_code or None,
        "hint": job.hint or None,
        "queue_position": queue_position,
        "checkpoint": job.checkpoint or None,
        "environment": job.environment or None,
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
    }


def progress_of(job: Job) -> dict[str, Any] | None:
    """``progress`` of the shape of ``/status``; None before the first step."""
    latest = job.progress
    if latest is None:
        return None
    step, total = latest.get("step") or 0, latest.get("total_steps") or 0
    return {
        "percent": round(100 * step / total, 2) if total else 0.0,
        "step": step,
        "total_steps": total,
        "epoch": latest.get("epoch"),
        "total_epochs": job.plan.get("epochs"),
        "loss": latest.get("loss"),
        "learning_rate": latest.get("learning_rate"),
        "eta_seconds": latest.get("eta_seconds"),
        "samples_per_second": latest.get("samples_per_second"),
        "metrics": {**latest.get("metrics", {}), "grad_norm": latest.get("grad_norm"), "seconds_per_step": latest.get("seconds_per_step")},
    }


def job_rows(jobs: QuerySet[Job]) -> list[dict[str, Any]]:
    """The lines of a history."""
    positions = queue.positions()
    return [_job_row(job, positions.get(job.pk)) for job in jobs]


def queue_rows() -> dict[str, Any]:
    """The jobs that train, and those that wait in the order in which they start."""
    return {"running": job_rows(queue.occupied().order_by("number")), "queued": job_rows(queue.waiting())}


def _job_row(job: Job, queue_position: int | None) -> dict[str, Any]:
    progress = progress_of(job)
    return {
        "job_id": str(job.pk),
        "number": job.number,
        **job_info(job, queue_position),
        "output_dir": job.output_dir,
        "percent": progress["percent"] if progress else None,
        "step": progress["step"] if progress else None,
        "total_steps": progress["total_steps"] if progress else None,
    }


def event(job: Job, row: tuple[int, str, str, str, dict[str, Any]], *, as_links: bool = False) -> dict[str, Any]:
    """One entry of the log, with its images."""
    index, kind, timestamp, severity, payload = row
    body = media.shown(job, index, payload, as_links=as_links) if media.attached(payload) else payload
    return {"index": index, "type": kind, "job_id": str(job.pk), "timestamp": timestamp, "severity": severity, **body}


def encoded_events(job: Job, since_index: int, limit: int, *, as_links: bool = False) -> list[tuple[int, str, str]]:
    """(index, type, JSON) of a page of the log, shorter than ``limit`` if its images are large.

    A payload without images is sent as the text in the database: parsing and writing its JSON would take most of the time.
    """
    rows = Event.objects.filter(job_id=job.pk, index__gte=since_index).order_by("index")
    job_id = json.dumps(str(job.pk))
    page: list[tuple[int, str, str]] = []
    size = 0
    for index, kind, timestamp, severity, payload in rows.annotate(text=Cast("payload", TextField())).values_list(*TEXT_COLUMNS)[:limit]:
        if any(mark in payload for mark in MEDIA_MARKS) or payload == "{}":
            shown = event(job, (index, kind, timestamp, severity, json.loads(payload)), as_links=as_links)
            text = encoded(shown)
        else:
            about = f'"type":{json.dumps(kind)},"job_id":{job_id},"timestamp":{json.dumps(timestamp)},"severity":{json.dumps(severity)}'
            text = f'{{"index":{index},{about},{payload[1:]}'
        page.append((index, kind, text))
        size += len(text)
        if size > LARGEST_PAGE_BYTES:
            break
    return page


def checkpoints(job: Job | None) -> dict[str, Any]:
    """The complete checkpoints in a job's output folder, newest first."""
    if job is None:
        return {"output_dir": None, "checkpoints": [], "total": 0}
    found = sorted(list_checkpoints(Path(job.output_dir)), key=lambda info: info.step, reverse=True)
    best = best_of(found)
    rows = [_checkpoint(info, is_latest=place == 0, is_best=info is best) for place, info in enumerate(found)]
    return {"output_dir": job.output_dir, "checkpoints": rows, "total": len(rows)}


def _checkpoint(info: CheckpointInfo, *, is_latest: bool, is_best: bool) -> dict[str, Any]:
    return {
        "name": info.name,
        "path": str(info.path),
        "step": info.step,
        "epoch": info.epoch,
        "loss": info.loss,
        "learning_rate": info.learning_rate,
        "timestamp": info.created_at,
        "size_bytes": info.size_bytes,
        "is_latest": is_latest,
        "is_best": is_best,
        "eval_loss": info.eval_loss,
        "is_rolling": info.is_rolling,
        "verified": info.verified,
    }

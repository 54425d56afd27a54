"""The runs of ``simpletuner train`` in this home, which have a folder and no job: what their files say of them, to read only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from uuid import UUID

from django.conf import settings
from pydantic import ValidationError

from trainer_engine.contract.events import EventType, JournalEntry
from trainer_engine.contract.files import read_small_json
from trainer_engine.contract.run import ExitReport, RunFolder
from training.engine import process
from training.engine.journal import read_entries
from training.models import Job
from training.pages.numbers import number_text

SHOWN = 10
MOST_FOLDERS = 5_000
TAIL_BYTES = 16 * 1024
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class ShellRun:
    """A run that was started in a shell."""

    environment: str
    state: str
    """``running``, one of ``exit.json``, or ``interrupted`` for one whose process is gone without a report."""
    facts: str
    when: datetime
    """When it was started."""
    note: str
    """Why it failed; empty if it did not."""
    folder: str


def shell_runs() -> list[ShellRun]:
    """The newest of them, the one that was started last first."""
    newest = sorted(_folders(Path(settings.STATE_DIR) / "runs"), reverse=True)[:SHOWN]
    return [_shown(RunFolder(path), started) for started, path in newest]


def _folders(runs: Path) -> Iterator[tuple[float, Path]]:
    """When the job of each folder was written, for those that no job of the server has."""
    try:
        with os.scandir(runs) as entries:
            names = [entry.name for entry, _ in zip(entries, range(MOST_FOLDERS), strict=False)]
    except OSError:
        return
    ids = {name: found for name in names if (found := _id(name)) is not None}
    ours = set(Job.objects.values_list("pk", flat=True)) if ids else set()
    for name, found in ids.items():
        if found not in ours:
            try:
                yield RunFolder(runs / name).job_file.stat().st_mtime, runs / name
            except OSError:
                continue


def _id(name: str) -> UUID | None:
    try:
        return UUID(name)
    except ValueError:
        return None


def _shown(folder: RunFolder, started: float) -> ShellRun:
    try:
        job = read_small_json(folder.job_file)
        environment = str(job.get("environment", "")) if isinstance(job, dict) else ""
    except OSError:
        environment = ""
    report = _report(folder)
    state = report.status if report else "running" if process.find(folder) else INTERRUPTED
    when = datetime.fromtimestamp(started, timezone.utc)
    note = report.message if report and report.status == "error" else ""
    return ShellRun(environment, state, _progress(folder), when, note, str(folder.path))


def _report(folder: RunFolder) -> ExitReport | None:
    try:
        return ExitReport.read(folder)
    except (OSError, ValidationError):
        return None


def _progress(folder: RunFolder) -> str:
    """The newest step and its loss, as far as the end of the journal holds them."""
    try:
        entries = read_entries(folder.journal, max(0, folder.journal.stat().st_size - TAIL_BYTES)).entries
    except OSError:
        return ""
    steps = [one.data for one in entries if isinstance(one, JournalEntry) and one.type == EventType.PROGRESS.value]
    if not steps or not isinstance(steps[-1].get("step"), int):
        return ""
    loss, total = steps[-1].get("loss"), steps[-1].get("total_steps")
    parts = [f"step {steps[-1]['step']:,}" + (f" of {total:,}" if isinstance(total, int) else "")]
    return " · ".join([*parts, *([f"loss {number_text(loss)}"] if isinstance(loss, float) else [])])

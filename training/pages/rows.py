"""The list of runs: what each of them does now, and what it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import QuerySet

from training.api import representations
from training.jobs import queue, series
from training.models import Job, Status
from training.pages.buttons import Button, buttons_of
from training.pages.numbers import ShownImage, number_text, seconds_text, shown_image, sparkline

RUNS_ON_PAGE = 20
SPARK_POINTS = 40
UNSHOWN = ("options", "datasets", "launch")
LONGEST_LINE = 200


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run of the list."""

    job: Job
    percent: float | None
    facts: str
    """Step, time left and loss, in one line."""
    when: datetime
    """When it ended, else when it began, else when it was accepted."""
    note: str
    """What it waits for, or how it ended."""
    spark: str
    spark_label: str
    image: ShownImage | None
    buttons: Sequence[Button]


def first_line(text: str) -> str:
    """The first line of a message, cut."""
    line = next(iter(text.strip().splitlines()), "")
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"


def waits_for(job: Job, position: int | None, occupied: Sequence[Job]) -> str:
    """What a queued job waits for; empty for other jobs."""
    if job.status != Status.QUEUED:
        return ""
    same_folder = next((one for one in occupied if one.output_dir == job.output_dir), None)
    if same_folder is not None:
        return f"Waits for run {same_folder.number}, which writes to the same folder."
    if position is None:
        return "Waits for a worker, which takes it next."
    names = " and ".join(f"run {one.number}" for one in occupied) or "a free slot"
    return f"Position {position} in the queue; waits for {names}."


def progress_facts(job: Job) -> tuple[float | None, str]:
    """Percent of the steps, and step, time left and loss in one line."""
    progress = representations.progress_of(job)
    if progress is None:
        return None, ""
    parts = [f"step {progress['step']:,} of {progress['total_steps']:,}"]
    if progress["eta_seconds"] and not job.has_ended:
        parts.append(f"{seconds_text(progress['eta_seconds'])} left")
    loss = progress["loss"]
    parts.append("loss not finite" if loss is None else f"loss {number_text(loss)}")
    return progress["percent"], " · ".join(parts)


def losses(job: Job) -> list[float]:
    """A few finite losses, evenly spread over the run."""
    if job.progress is None:
        return []
    return [value for value in series.read_curves(job, SPARK_POINTS).values["loss"] if value is not None]


def run_row(job: Job, positions: Mapping[UUID, int], occupied: Sequence[Job]) -> RunRow:
    percent, facts = progress_facts(job)
    found = losses(job)
    image = series.newest_image(job)
    label = f"Loss from {number_text(found[0])} to {number_text(found[-1])}" if len(found) > 1 else ""
    return RunRow(
        job=job,
        percent=percent,
        facts=facts,
        when=job.finished_at or job.started_at or job.created_at,
        note=waits_for(job, positions.get(job.pk), occupied) or first_line(job.message),
        spark=sparkline(found),
        spark_label=label,
        image=shown_image(image) if image else None,
        buttons=buttons_of(job, on_list=True),
    )


def listed(before: int | None = None) -> tuple[list[RunRow], int | None]:
    """Runs, newest first, and the number before which the next page begins; None on the last page."""
    jobs: QuerySet[Job] = Job.objects.order_by("-number").defer(*UNSHOWN)
    jobs = jobs if before is None else jobs.filter(number__lt=before)
    page = list(jobs[: RUNS_ON_PAGE + 1])
    positions, occupied = queue.positions(), list(queue.occupied().order_by("number").defer(*UNSHOWN))
    rows = [run_row(job, positions, occupied) for job in page[:RUNS_ON_PAGE]]
    return rows, rows[-1].job.number if len(page) > RUNS_ON_PAGE else None


def stream_query() -> str:
    """The query of a stream that begins behind what the list shows and goes on to the next job."""
    job = queue.current_job()
    return f"media=url&last_event_id={job.pk}:{job.next_index - 1}" if job and job.next_index else "media=url"

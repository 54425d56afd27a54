"""Reads what a page shows of a run from a log of any length: points of its curves, its measurements, its images, its newest events.

The number of rows that each function reads is bounded. The index ``event_of_type`` leads to them, so a run with a million events
costs as much as one with a few thousand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from django.db import connection
from django.db.models import QuerySet

from trainer_engine.contract.events import EVALUATION, EventType
from training.models import Event, Job

MOST_POINTS = 1_000
MOST_MEASUREMENTS = 2_000
"""Newest notifications among which evaluations are searched for."""
MOST_CHECKPOINTS = 500
SEARCHED_IMAGES = 5_000
"""Newest image events among which finished images are searched for; the others are previews."""
BASE_MODEL = "base_model"
FINISHED = ("final", BASE_MODEL)
CURVES = ("loss", "learning_rate", "grad_norm")

SPREAD = """
WITH RECURSIVE starts(first) AS (
    SELECT CAST(%(low)s AS bigint) UNION ALL SELECT first + %(gap)s FROM starts WHERE first + %(gap)s <= %(high)s
)
SELECT DISTINCT (SELECT MIN("index") FROM training_event WHERE job_id = %(job)s AND type = %(type)s AND "index" >= first) FROM starts
"""
"""The first event of a type at or after each of evenly spread indexes. Each is one search in the index."""


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Points of the curves of a run, in the order of the steps. Lists have one value for each step; None is a value that is not finite."""

    steps: list[int]
    values: dict[str, list[float | None]]
    """Name of ``CURVES`` -> its values."""
    is_complete: bool
    """Whether every progress event of the log is a point."""
    total_steps: int


def _events(job: Job, *types: EventType) -> QuerySet[Event]:
    return Event.objects.filter(job_id=job.pk, type__in=[one.value for one in types])


def spread_indexes(job: Job, most: int) -> tuple[list[int], bool]:
    """Indexes of at most ``most`` progress events, evenly spread, with the first and the last one; and whether these are all."""
    rows = _events(job, EventType.PROGRESS)
    every = list(rows.order_by("index").values_list("index", flat=True)[: most + 1])
    if len(every) <= most:
        return every, True
    low, high = every[0], rows.order_by("-index").values_list("index", flat=True)[0]
    values = {
        "low": low,
        "high": high,
        "gap": math.ceil((high - low) / max(1, most - 2)),
        "job": Event._meta.get_field("job").target_field.get_db_prep_value(job.pk, connection),
        "type": EventType.PROGRESS.value,
    }
    with connection.cursor() as cursor:
        cursor.execute(SPREAD, values)
        found = {row[0] for row in cursor.fetchall() if row[0] is not None}
    return sorted(found | {high}), False


def read_curves(job: Job, most: int = MOST_POINTS) -> Curves:
    """At most ``most`` points of each curve. A resumed run reports some steps twice; the later report counts."""
    indexes, is_complete = spread_indexes(job, most)
    by_step: dict[int, Mapping[str, Any]] = {}
    total = 0
    for payload in Event.objects.filter(job_id=job.pk, index__in=indexes).order_by("index").values_list("payload", flat=True):
        data = payload.get("data", {})
        by_step[int(data.get("step") or 0)] = data
        total = int(data.get("total_steps") or 0)
    steps = sorted(by_step)
    values = {name: [_number(by_step[step].get(name)) for step in steps] for name in CURVES}
    return Curves(steps=steps, values=values, is_complete=is_complete, total_steps=total)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def evaluations(job: Job) -> dict[str, list[tuple[int, float]]]:
    """Name of a measurement -> (step, value), in the order of the steps, from the newest notifications."""
    newest = _events(job, EventType.NOTIFICATION).order_by("-index").values_list("payload", flat=True)[:MOST_MEASUREMENTS]
    found: dict[str, list[tuple[int, float]]] = {}
    for payload in reversed(list(newest)):
        data = part(payload, "data")
        if data.get("code") != EVALUATION:
            continue
        details = part(data, "details")
        for name, value in part(details, "metrics").items():
            number = _number(value)
            if number is not None:
                found.setdefault(str(name), []).append((step_of(details, "step"), number))
    return found


def part(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object in an event; an empty one if it is anything else, as in a damaged journal."""
    found = fields.get(name)
    return found if isinstance(found, dict) else {}


def step_of(fields: Mapping[str, Any], name: str) -> int:
    """A step in an event; 0 if it is anything else."""
    found = fields.get(name)
    return found if type(found) is int else 0


def checkpoint_marks(job: Job) -> list[tuple[int, str]]:
    """(step, name) of the newest checkpoints, in the order of the steps."""
    return list(job.checkpoints.order_by("-step", "-pk").values_list("step", "name")[:MOST_CHECKPOINTS])[::-1]


def finished_images(job: Job, most: int, *, before: int | None = None) -> list[Event]:
    """The newest finished images of validations, newest first; with ``before`` those with a smaller index."""
    images = _events(job, EventType.IMAGE)
    if before is not None:
        images = images.filter(index__lt=before)
    floor = images.order_by("-index").values_list("index", flat=True)[SEARCHED_IMAGES : SEARCHED_IMAGES + 1]
    images = images.filter(index__gt=floor[0]) if floor else images
    return list(images.filter(payload__data__validation_type__in=FINISHED).order_by("-index")[:most])


def base_images(job: Job, most: int) -> list[Event]:
    """The first images that the base model generated, before training."""
    images = _events(job, EventType.IMAGE)
    ceiling = images.order_by("index").values_list("index", flat=True)[SEARCHED_IMAGES : SEARCHED_IMAGES + 1]
    images = images.filter(index__lt=ceiling[0]) if ceiling else images
    return list(images.filter(payload__data__validation_type=BASE_MODEL).order_by("index")[:most])


def newest_image(job: Job) -> Event | None:
    """The newest image or preview."""
    return _events(job, EventType.IMAGE).order_by("-index").first()


def newest_events(job: Job, types: Iterable[EventType], most: int, *, before: int | None = None) -> Sequence[Event]:
    """The newest events of some types, newest first; with ``before`` those with a smaller index."""
    rows = (_newest_of(job, one, most, before) for one in types)
    return sorted(chain.from_iterable(rows), key=lambda event: event.index, reverse=True)[:most]


def _newest_of(job: Job, type: EventType, most: int, before: int | None) -> QuerySet[Event]:
    rows = _events(job, type) if before is None else _events(job, type).filter(index__lt=before)
    return rows.order_by("-index")[:most]

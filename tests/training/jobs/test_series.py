"""The curves, measurements and images of a run are read out of its log in a bounded number of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.helpers.jobs import make_job
from trainer_engine.contract.events import EventType, Severity
from training.jobs import series
from training.models import Checkpoint, Event, Job, Status
from training.upkeep import thinning

pytestmark = pytest.mark.django_db


def write_events(job: Job, *events: tuple[EventType, dict[str, Any]]) -> None:
    """Append rows to a job's log."""
    first = job.next_index
    Event.objects.bulk_create(
        Event(
            job=job, index=first + place, seq=first + place, type=kind.value, timestamp="t", severity=Severity.INFO.value, payload=payload
        )
        for place, (kind, payload) in enumerate(events)
    )
    Job.objects.filter(pk=job.pk).update(next_index=first + len(events))
    job.refresh_from_db()


def step(number: int, loss: float | None = 0.5, **values: Any) -> tuple[EventType, dict[str, Any]]:
    data = {"step": number, "total_steps": 99, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0, **values}
    return EventType.PROGRESS, {"data": data}


def image(global_step: int, kind: str) -> tuple[EventType, dict[str, Any]]:
    return EventType.IMAGE, {"title": "t", "data": {"global_step": global_step, "validation_type": kind}, "images": []}


def evaluation(number: int, **metrics: float | None) -> tuple[EventType, dict[str, Any]]:
    return EventType.NOTIFICATION, {"data": {"code": "evaluation", "details": {"step": number, "metrics": metrics}}}


def test_a_short_run_is_read_completely(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_events(job, step(1, 0.9), (EventType.STATUS, {}), step(2, None), step(3, 0.3, grad_norm=None))
    curves = series.read_curves(job)
    assert (curves.steps, curves.is_complete, curves.total_steps) == ([1, 2, 3], True, 99)
    assert curves.values == {"loss": [0.9, None, 0.3], "learning_rate": [1e-4] * 3, "grad_norm": [1.0, 1.0, None]}


def test_a_run_without_a_step_has_no_points(tmp_path: Path) -> None:
    curves = series.read_curves(make_job(tmp_path))
    assert curves.steps == [] and curves.values == {"loss": [], "learning_rate": [], "grad_norm": []}


@pytest.mark.parametrize("most", [10, 11, 50, 499])
def test_a_long_run_gives_evenly_spread_points_with_both_ends(tmp_path: Path, most: int) -> None:
    job = make_job(tmp_path)
    write_events(job, *(one for number in range(1, 501) for one in (step(number, 1 / number), (EventType.STAGE, {}))))
    curves = series.read_curves(job, most)
    assert not curves.is_complete and most / 2 <= len(curves.steps) <= most
    assert (curves.steps[0], curves.steps[-1]) == (1, 500)
    assert curves.values["loss"] == [1 / number for number in curves.steps]
    gaps = [later - earlier for earlier, later in zip(curves.steps, curves.steps[1:], strict=False)]
    assert max(gaps) <= 2 * 500 / most + 1


def test_reading_a_long_run_takes_a_bounded_number_of_rows_and_searches_the_index(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_events(job, *(step(number) for number in range(1, 3001)))
    with CaptureQueriesContext(
        connection,
    ) as queries:
        series.read_curves(job, 20)
    assert len(queries) <= 5
    with connection.cursor() as cursor:
        for query in queries:
            cursor.execute("EXPLAIN QUERY PLAN " + query["sql"])
            plan = " ".join(str(row) for row in cursor.fetchall())
            assert "SCAN training_event" not in plan, plan


def test_a_thinned_log_still_gives_its_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinning, "KEPT", 30)
    job = make_job(tmp_path, Status.COMPLETED)
    write_events(job, *(step(number) for number in range(1, 901)))
    assert thinning.thin_events(job) > 800
    assert series.read_curves(job, 40).steps[-1] == 900
    few = series.read_curves(job, 12).steps
    assert 6 <= len(few) <= 12 and (few[0], few[-1]) == (1, 900)


def test_a_step_that_was_reported_twice_counts_once_with_its_later_value(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_events(job, step(1, 0.9), step(2, 0.8), step(2, 0.7), step(3, 0.6))
    curves = series.read_curves(job)
    assert curves.steps == [1, 2, 3] and curves.values["loss"] == [0.9, 0.7, 0.6]


def test_runs_do_not_mix(tmp_path: Path) -> None:
    one, other = make_job(tmp_path), make_job(tmp_path)
    write_events(one, step(1, 0.1), image(1, "final"), evaluation(1, loss=1.0))
    write_events(other, step(1, 0.2))
    assert series.read_curves(other).values["loss"] == [0.2]
    assert series.finished_images(other, 9) == [] and series.evaluations(other) == {} and series.newest_image(other) is None


def test_evaluations_are_grouped_by_their_name(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    other = (EventType.NOTIFICATION, {"data": {"code": "note", "details": {"metrics": {"loss": 9.0}}}})
    write_events(job, evaluation(5, loss=0.5, clip=None), other, evaluation(10, loss=0.4, clip=0.3))
    assert series.evaluations(job) == {"loss": [(5, 0.5), (10, 0.4)], "clip": [(10, 0.3)]}


def test_previews_are_no_finished_images(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_events(job, image(0, "base_model"), *(image(5, "intermediary") for _ in range(7)), image(5, "final"), image(10, "final"))
    steps = [event.payload["data"]["global_step"] for event in series.finished_images(job, 9)]
    assert steps == [10, 5, 0]
    assert [event.index for event in series.finished_images(job, 9, before=9)] == [8, 0]
    assert [event.index for event in series.base_images(job, 9)] == [0]
    newest = series.newest_image(job)
    assert newest is not None and newest.index == 9


def test_finished_images_are_searched_for_among_the_newest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "SEARCHED_IMAGES", 4)
    job = make_job(tmp_path)
    write_events(job, image(0, "base_model"), image(1, "final"), *(image(2, "intermediary") for _ in range(3)), image(2, "final"))
    assert [event.index for event in series.finished_images(job, 9)] == [5]
    assert [event.index for event in series.base_images(job, 9)] == [0]


def test_newest_events_of_several_types_come_in_one_order(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    write_events(job, (EventType.STATUS, {}), step(1), evaluation(1), step(2), (EventType.ERROR, {}), step(3))
    quiet = (EventType.STATUS, EventType.NOTIFICATION, EventType.ERROR)
    assert [event.index for event in series.newest_events(job, quiet, 9)] == [4, 2, 0]
    assert [event.index for event in series.newest_events(job, quiet, 2)] == [4, 2]
    assert [event.index for event in series.newest_events(job, quiet, 2, before=4)] == [2, 0]


def metrics(client: Any, job: Job, query: str = "") -> Any:
    return client.get(f"/api/training/jobs/{job.pk}/metrics{query}", headers={"Accept": "application/json"})


def test_the_api_gives_the_points_the_marks_and_the_index_to_go_on_from(home: Path, client: Any, tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    Checkpoint.objects.create(job=job, name="checkpoint-2", path="/gone", step=2)
    write_events(job, image(0, "base_model"), step(1), step(2), image(2, "final"), evaluation(2, loss=0.25))
    answer = metrics(client, job)
    assert answer.status_code == 200
    assert answer.json() == {
        "job_id": str(job.pk),
        "next_index": 5,
        "total_steps": 99,
        "is_complete": True,
        "steps": [1, 2],
        "loss": [0.5, 0.5],
        "learning_rate": [1e-4, 1e-4],
        "grad_norm": [1.0, 1.0],
        "evaluations": {"loss": [{"step": 2, "value": 0.25}]},
        "checkpoints": [{"step": 2, "name": "checkpoint-2"}],
        "validations": [0, 2],
    }


@pytest.mark.parametrize("points", ["9", "5001", "-1", "x", "1e3", ""])
def test_the_api_refuses_a_wrong_number_of_points(home: Path, client: Any, tmp_path: Path, points: str) -> None:
    answer = metrics(client, make_job(tmp_path), f"?points={points}")
    assert answer.status_code == 422 and "points" in json.dumps(answer.json()["problems"])


def test_the_api_knows_no_other_jobs(home: Path, client: Any) -> None:
    assert client.get("/api/training/jobs/nothing/metrics").status_code == 404

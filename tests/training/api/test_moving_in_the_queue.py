"""A waiting run is moved to another place in the queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.jobs import make_job
from tests.training.conftest import Training
from training.jobs import queue
from training.models import Job, Status

pytestmark = pytest.mark.django_db


@pytest.fixture
def jobs(training: Training, tmp_path: Path) -> list[Job]:
    """One that trains, and four that wait."""
    return [make_job(tmp_path, Status.RUNNING), *(make_job(tmp_path) for _ in range(4))]


def move(training: Training, job: Job, body: Any) -> Any:
    return training.post(f"/queue/{job.pk}/move", body, format="json")


def order(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.content
    return [row["number"] for row in answer.json()["queued"]]


@pytest.mark.parametrize(
    ("moved", "position", "wanted"),
    [(4, 1, [5, 2, 3, 4]), (1, 4, [3, 4, 5, 2]), (2, 2, [2, 3, 4, 5]), (3, 2, [2, 4, 3, 5]), (1, 1_000_000, [3, 4, 5, 2])],
)
def test_a_waiting_run_gets_the_place_that_is_asked_for(
    training: Training, jobs: list[Job], moved: int, position: int, wanted: list[int]
) -> None:
    answer = move(training, jobs[moved], {"position": position})
    assert order(answer) == wanted == order(training.get("/queue"))
    assert [row["queue_position"] for row in answer.json()["queued"]] == [1, 2, 3, 4]
    assert [row["number"] for row in answer.json()["running"]] == [1]


def test_the_run_that_was_moved_to_the_front_starts_next(training: Training, jobs: list[Job], settings: Any) -> None:
    move(training, jobs[4], {"position": 1})
    settings.SLOTS = 3
    claimed = [queue.claim_next(owner) for owner in ("a", "b", "c")]
    assert [job.number if job else None for job in claimed] == [5, 2, None]


def test_a_new_run_comes_after_those_that_were_moved(training: Training, jobs: list[Job]) -> None:
    move(training, jobs[1], {"position": 4})
    started = training.start()
    assert started["queue_position"] == 5
    assert order(training.get("/queue")) == [3, 4, 5, 2, 6]


def test_a_whole_number_may_have_a_fraction_of_zero(training: Training, jobs: list[Job]) -> None:
    assert order(move(training, jobs[4], {"position": 2.0})) == [2, 5, 3, 4]
    for wrong in (2.5, 1e300, -1.0):
        assert move(training, jobs[4], {"position": wrong}).status_code == 422


def test_a_form_moves_as_well(training: Training, jobs: list[Job]) -> None:
    assert order(training.post(f"/queue/{jobs[4].pk}/move", {"position": "1"})) == [5, 2, 3, 4]


@pytest.mark.parametrize("position", [0, -1, 1.5, True, None, "", "first", [1], {"a": 1}, 10**30, "９"])
def test_a_place_that_is_none_is_refused_and_nothing_moves(training: Training, jobs: list[Job], position: Any) -> None:
    answer = move(training, jobs[4], {"position": position})
    assert answer.status_code == 422
    assert [problem["option"] for problem in answer.json()["problems"]] == ["position"]
    assert order(training.get("/queue")) == [2, 3, 4, 5]


def test_a_place_must_be_given(training: Training, jobs: list[Job]) -> None:
    assert move(training, jobs[4], {}).status_code == 422


@pytest.mark.parametrize("status", [status for status in Status if status != Status.QUEUED])
def test_a_run_that_does_not_wait_has_no_place(training: Training, jobs: list[Job], status: Status) -> None:
    Job.objects.filter(pk=jobs[2].pk).update(status=status)
    answer = move(training, jobs[2], {"position": 1})
    assert answer.status_code == 409
    assert f"it is {status.value}" in answer.json()["detail"]
    assert order(training.get("/queue")) == [2, 4, 5]


@pytest.mark.parametrize("job_id", ["00000000-0000-0000-0000-000000000000", "x"])
def test_an_unknown_run_is_not_found(training: Training, jobs: list[Job], job_id: str) -> None:
    assert training.post(f"/queue/{job_id}/move", {"position": 1}).status_code == 404

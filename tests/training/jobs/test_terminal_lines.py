"""The server's terminal says in a line each which runs start, end and fail."""

from __future__ import annotations

import logging

import pytest

from training.jobs import log
from training.models import Job, Status


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "training.runs"]


@pytest.mark.django_db(transaction=True)
def test_a_run_is_named_when_it_starts_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training.runs")
    job = Job.objects.create(number=4, environment="demo")
    assert log.move(job.pk, Status.STARTING, [])
    assert log.move(job.pk, Status.ERROR, [], message="CUDA out of\nmemory.")
    assert lines(caplog) == [("INFO", "Run 4 (demo) starts."), ("ERROR", "Run 4 (demo) failed. CUDA out of memory.")]


@pytest.mark.django_db(transaction=True)
def test_a_move_that_did_not_happen_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training.runs")
    job = Job.objects.create(number=5, status=Status.COMPLETED)
    assert not log.move(job.pk, Status.STARTING, [])
    assert lines(caplog) == []


@pytest.mark.django_db(transaction=True)
def test_a_run_without_an_environment_has_its_number_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training.runs")
    job = Job.objects.create(number=6)
    assert log.move(job.pk, Status.CANCELLED, [], message="Cancelled by a user.")
    assert lines(caplog) == [("INFO", "Run 6 was cancelled. Cancelled by a user.")]

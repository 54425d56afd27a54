"""Which status may follow which, for any number of hands that pull at one job."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from django.db import connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.jobs import make_job
from training.jobs import transitions
from training.models import ACTIVE, TERMINAL, Job, Status

ALL = list(Status)
ALLOWED = {
    ("queued", "starting"), ("queued", "cancelled"),
    ("starting", "running"), ("starting", "stopping"), ("running", "stopping"),
    *((before.value, after) for before in ACTIVE for after in ("completed", "stopped", "cancelled", "error")),
}  # fmt: skip


@pytest.mark.django_db
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wishes=st.lists(st.sampled_from(ALL[1:]), max_size=12))
def test_no_sequence_of_wishes_leaves_the_allowed_graph(tmp_path: Path, wishes: list[Status]) -> None:
    job = make_job(tmp_path)
    for wish in wishes:
        before = Job.objects.get(pk=job.pk).status
        moved = transitions.move(job.pk, wish)
        after = Job.objects.get(pk=job.pk).status
        assert moved == ((before, wish.value) in ALLOWED)
        assert after == (wish.value if moved else before)


def test_nothing_leads_out_of_an_end_and_every_state_can_end() -> None:
    for end in TERMINAL:
        assert not any(transitions.is_allowed(end.value, after.value) for after in Status)
    for state in (Status.QUEUED, *ACTIVE):
        assert transitions.is_allowed(state.value, Status.CANCELLED.value)


@pytest.mark.django_db(transaction=True)
def test_of_many_that_end_a_job_at_once_exactly_one_does(tmp_path: Path) -> None:
    job = make_job(tmp_path, Status.RUNNING)
    won: list[str] = []
    gate = threading.Barrier(8)

    def pull(to: Status) -> None:
        gate.wait()
        if transitions.move(job.pk, to):
            won.append(to.value)
        connection.close()

    threads = [threading.Thread(target=pull, args=(to,)) for to in (*TERMINAL, *TERMINAL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert Job.objects.get(pk=job.pk).status == won[0]

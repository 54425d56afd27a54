"""Stop saves, cancel ends at once, and no order of the two leads anywhere but to one end."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.helpers.served_runs import ENDLESS, ServedRuns
from training.jobs.transitions import is_allowed

LONG = {"max_train_steps": ENDLESS, "checkpoint_step_interval": 50}


def check_path(runs: ServedRuns, job_id: str) -> list[str]:
    """The states of the log follow the graph; they."""
    states = [event["data"]["status"] for event in runs.check_log(job_id) if event["type"] == "training.status"]
    assert all(is_allowed(before, after) for before, after in zip(states, states[1:], strict=False)), states
    return states


@pytest.mark.parametrize("seconds", [0.0, 0.5, 1.5, 3.0])
def test_a_run_stopped_while_it_loads_ends_stopped_with_nothing_to_save(runs: ServedRuns, seconds: float) -> None:
    job_id = runs.start(f"loading-{seconds}", **LONG)
    runs.wait_for_engine(job_id)
    time.sleep(seconds)
    runs.stop(job_id)
    job = runs.wait_for_end(job_id)
    assert job["status"] == "stopped", job
    steps = runs.steps(job_id)
    assert bool(runs.check_announced(job_id, f"loading-{seconds}")) == bool(steps)
    assert check_path(runs, job_id)[-2:] == ["stopping", "stopped"]
    runs.check_nothing_left(job_id)


def test_a_run_stopped_and_resumed_three_times_ends_with_the_bytes_of_a_straight_one(runs: ServedRuns) -> None:
    steps = 600
    shape = {"max_train_steps": steps, "checkpoint_step_interval": 1000, "gradient_accumulation_steps": 2}
    straight = runs.start("straight", **shape)
    assert runs.wait_for_end(straight)["status"] == "completed", runs.log(straight)
    last = 0
    for ahead in (1, 40, 90):
        job_id = runs.start("stopped", **shape)
        runs.wait_for_step(job_id, last + ahead)
        runs.stop(job_id)
        assert runs.wait_for_end(job_id)["status"] == "stopped"
        taken = runs.steps(job_id)
        assert taken[0] == last + 1
        last = taken[-1]
        assert runs.check_announced(job_id, "stopped") == f"checkpoint-{last}"
    final = runs.start("stopped", **shape)
    assert runs.wait_for_end(final)["status"] == "completed", runs.log(final)
    assert runs.steps(final) == list(range(last + 1, steps + 1))
    assert runs.weights("stopped", steps) == runs.weights("straight", steps)


def test_cancel_ends_a_run_whose_stop_is_under_way(runs: ServedRuns) -> None:
    job_id = runs.start("both", **LONG)
    runs.wait_for_step(job_id, 1)
    (engine,) = runs.engine(job_id)
    engine.suspend()  # so that the stop is not done before the cancel comes
    assert runs.stop(job_id)["status"] == "stopping"
    assert runs.cancel(job_id)["status"] == "cancelled"
    runs.check_nothing_left(job_id)
    assert check_path(runs, job_id)[-2:] == ["stopping", "cancelled"]


def test_of_many_cancels_and_stops_at_once_one_decides(runs: ServedRuns) -> None:
    dice = random.Random(5)
    for round_number in range(4):
        job_id = runs.start(f"race-{round_number}", **LONG)
        runs.wait_for_engine(job_id)
        time.sleep(dice.uniform(0, 4))
        calls = [runs.cancel, runs.cancel, runs.stop, runs.stop]
        dice.shuffle(calls)
        threads = [threading.Thread(target=call, args=(job_id,)) for call in calls]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert runs.wait_for_end(job_id)["status"] in ("cancelled", "stopped")
        check_path(runs, job_id)
        runs.check_nothing_left(job_id)


def test_a_queued_run_that_is_stopped_or_cancelled_never_starts_an_engine(runs: ServedRuns) -> None:
    running = runs.start("running", **LONG)
    stopped, cancelled = (runs.start(name, max_train_steps=2) for name in ("first", "second"))
    assert [runs.job(job_id)["job_info"]["queue_position"] for job_id in (stopped, cancelled)] == [1, 2]
    assert runs.stop(stopped)["status"] == "cancelled"
    assert runs.job(cancelled)["job_info"]["queue_position"] == 1
    assert runs.cancel(cancelled)["status"] == "cancelled"
    runs.cancel(running)
    for job_id in (stopped, cancelled):
        assert check_path(runs, job_id) == ["queued", "cancelled"]
        assert not runs.folder(job_id).log.exists()
    runs.check_nothing_left(running)


def test_stop_start_stop_start_in_quick_succession_keeps_runs_apart(runs: ServedRuns) -> None:
    """The second run of an output folder begins only when the first one's process is gone."""
    jobs = []
    for _ in range(3):
        jobs.append(runs.start("again", **LONG))
        runs.wait_for_step(jobs[-1], 1)
        runs.stop(jobs[-1])
    assert runs.wait_for_end(jobs[-1])["status"] == "stopped"
    taken = [runs.steps(job_id) for job_id in jobs]
    assert all(after[0] == before[-1] + 1 for before, after in zip(taken, taken[1:], strict=False)), taken
    for job_id in jobs:
        check_path(runs, job_id)

"""Fifty people press start at the same moment."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.helpers.served_runs import ENDLESS, JSON, ServedRuns, wait_until

MANY = 50


def waiting(runs: ServedRuns) -> list[dict[str, Any]]:
    queue = runs.server.get("/api/training/queue", headers=JSON).json()
    return list(queue["queued"])


def running(runs: ServedRuns) -> list[dict[str, Any]]:
    return list(runs.server.get("/api/training/queue", headers=JSON).json()["running"])


def test_fifty_starts_at_once_run_as_many_as_there_are_slots_and_the_rest_in_order(two_at_a_time: ServedRuns) -> None:
    runs = two_at_a_time
    runs.form("x")  # the datasets are there before everybody asks
    with ThreadPoolExecutor(MANY) as people:
        ids = list(people.map(lambda number: runs.start(f"run-{number}", max_train_steps=ENDLESS), range(MANY)))
    assert len(set(ids)) == MANY
    wait_until(lambda: len(running(runs)) == 2 and all(runs.engine(job["job_id"]) for job in running(runs)), "two runs")
    queued = waiting(runs)
    assert [job["queue_position"] for job in queued] == list(range(1, MANY - 1))
    assert [job["number"] for job in queued] == sorted(job["number"] for job in queued)
    assert sum(bool(runs.engine(job_id)) for job_id in ids) == 2

    for job in queued[4:]:
        runs.cancel(job["job_id"])
    for _ in range(3):
        before = running(runs)
        assert len(before) <= 2
        runs.cancel(before[0]["job_id"])
        wait_until(lambda gone=before[0]["job_id"]: gone not in {job["job_id"] for job in running(runs)}, "the slot is free")
        wait_until(lambda: len(running(runs)) == 2, "the next one has it")
    for job_id in ids:
        if runs.status(job_id) not in ("cancelled", "completed"):
            runs.stop(job_id)
    ends = Counter(runs.wait_for_end(job_id)["status"] for job_id in ids)
    assert set(ends) <= {"cancelled", "stopped"} and sum(ends.values()) == MANY, ends
    for job_id in ids:
        runs.check_log(job_id)
        runs.check_nothing_left(job_id)
    assert waiting(runs) == running(runs) == []


def test_one_key_is_one_job_however_often_and_at_once_it_is_sent(runs: ServedRuns) -> None:
    runs.form("x")
    with ThreadPoolExecutor(20) as people:
        ids = set(people.map(lambda _: runs.start("keyed", key="press-once", max_train_steps=2), range(20)))
    assert len(ids) == 1
    (job_id,) = ids
    assert runs.wait_for_end(job_id)["status"] == "completed", runs.log(job_id)
    assert runs.start("keyed", key="press-once", max_train_steps=2) == job_id
    jobs = runs.server.get("/api/training/jobs", headers=JSON).json()["jobs"]
    assert len([job for job in jobs if job["output_dir"].endswith("/keyed")]) == 1


def test_jobs_of_one_queue_each_run_to_their_end_one_after_the_other(runs: ServedRuns) -> None:
    ids = [runs.start(f"row-{number}", max_train_steps=2) for number in range(3)]
    for job_id in ids:
        assert runs.wait_for_end(job_id)["status"] == "completed", runs.log(job_id)
    times = [(runs.job(job_id)["job_info"]["started_at"], runs.job(job_id)["job_info"]["finished_at"]) for job_id in ids]
    assert all(before[1] <= after[0] for before, after in zip(times, times[1:], strict=False)), times

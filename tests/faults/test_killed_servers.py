"""The server, its worker, or all of it killed with -9: the run goes on, and its log knows no gap."""

from __future__ import annotations

import os
import random
import signal
import time

import psutil
import pytest

from tests.helpers.listeners import SocketListener, SourceListener
from tests.helpers.served_runs import ServedRuns, wait_until

LONG = {"max_train_steps": 1500, "gradient_accumulation_steps": 2, "checkpoint_step_interval": 500}


def worker_of(runs: ServedRuns) -> int:
    """Its process id; 0 while there is none."""
    return int(runs.server.get("/health").json()["checks"]["workers"].get("pid") or 0)


def test_a_run_survives_three_kills_of_the_whole_server_and_completes(runs: ServedRuns) -> None:
    listeners = [SocketListener(runs.server.port), SourceListener(runs.server.port)]
    job_id = runs.start("survivor", **LONG)
    bound = [SocketListener(runs.server.port, job_id), SourceListener(runs.server.port, job_id)]
    for listener in (*listeners, *bound):
        listener.start()
    (engine,) = runs.wait_for_engine(job_id)
    reported: list[dict[str, object]] = []
    for target in (1, 100, 300):
        runs.wait_for_step(job_id, target)
        reported = runs.events(job_id)
        runs.server.kill9()
        time.sleep(0.3)
        assert engine.is_running()
        runs.server.start()
        assert runs.events(job_id)[: len(reported)] == reported
    assert runs.wait_for_end(job_id)["status"] == "completed", runs.log(job_id)
    assert runs.steps(job_id) == list(range(1, LONG["max_train_steps"] + 1))
    polled = runs.check_log(job_id)
    for listener in (*listeners, *bound):
        assert listener.wait_for(job_id, len(polled)) == polled, type(listener).__name__
        assert listener.connections >= 3
        listener.end()
    assert runs.check_announced(job_id, "survivor") == f"checkpoint-{LONG['max_train_steps']}"


def test_a_run_that_ends_while_there_is_no_server_has_ended_when_there_is_one(runs: ServedRuns) -> None:
    job_id = runs.start("alone", max_train_steps=200)
    runs.wait_for_step(job_id, 1)
    processes = runs.engine(job_id)
    runs.server.kill9()
    assert psutil.wait_procs(processes, timeout=90)[1] == []
    runs.server.start()
    assert runs.wait_for_end(job_id)["status"] == "completed"
    assert runs.steps(job_id) == list(range(1, 201))
    runs.check_log(job_id)


def test_an_engine_that_was_killed_while_there_is_no_server_is_found_dead(runs: ServedRuns) -> None:
    job_id = runs.start("both", max_train_steps=100_000, checkpoint_step_interval=10)
    runs.wait_for_checkpoint(job_id)
    runs.server.kill9()
    runs.kill_engine(job_id)
    runs.server.start()
    job = runs.wait_for_status(job_id, "error")
    assert job["job_info"]["error_code"] == "interrupted"
    runs.check_announced(job_id, "both")
    runs.check_log(job_id)


def test_a_worker_killed_alone_is_replaced_and_its_run_followed_on(runs: ServedRuns) -> None:
    job_id = runs.start("worker", max_train_steps=100_000)
    runs.wait_for_step(job_id, 1)
    (engine,) = runs.engine(job_id)
    for _ in range(2):
        before = worker_of(runs)
        os.kill(before, signal.SIGKILL)
        wait_until(lambda old=before: worker_of(runs) not in (old, 0), "another worker")
        runs.wait_for_step(job_id, runs.step(job_id) + 50)
    assert [process.pid for process in runs.engine(job_id)] == [engine.pid]
    runs.stop(job_id)
    assert runs.wait_for_end(job_id)["status"] == "stopped"
    runs.check_log(job_id)


@pytest.mark.parametrize("seed", range(4))
def test_a_server_killed_while_it_takes_up_a_job_never_starts_it_twice_or_forgets_it(runs: ServedRuns, seed: int) -> None:
    job_id = runs.start(f"taken-{seed}", max_train_steps=3)
    time.sleep(random.Random(seed).uniform(0, 0.4))
    runs.server.kill9()
    assert len(runs.engine(job_id)) <= 1
    runs.server.start()
    job = runs.wait_for_end(job_id)
    assert job["status"] == "completed" or job["job_info"]["error_code"] == "interrupted", job
    if job["status"] == "completed":
        assert runs.steps(job_id) == [1, 2, 3]
        stages = [event["stage"] for event in runs.events(job_id) if event["type"] == "lifecycle.stage"]
        assert [stage["status"] for stage in stages if stage["key"] == "model_save"] == ["running", "completed"], "one engine, once"
    runs.check_log(job_id)
    runs.check_nothing_left(job_id)

"""A run, its events and its checkpoints outlive whatever is killed: server, worker, engine. The long forms are in ``tests/faults``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.helpers.listeners import Listener, SocketListener, SourceListener
from tests.helpers.live_server import start_server
from tests.helpers.served_runs import ENDLESS, ServedRuns
from trainer_engine.contract.checkpoint_files import list_checkpoints

NOTICED_SECONDS = 15
"""Generous: the promise is seconds, and the machine may be busy."""


@dataclass
class Scene:
    """A server, and two clients that listen to it from the first job to the last."""

    runs: ServedRuns
    listeners: tuple[Listener, ...]

    def check_that_all_heard(self, *job_ids: str) -> None:
        """WebSocket and server-sent events gave the events that polling gives, once each, job after job."""
        for job_id in job_ids:
            polled = self.runs.check_log(job_id)
            for listener in self.listeners:
                assert listener.wait_for(job_id, len(polled)) == polled, type(listener).__name__
        for listener in self.listeners:
            assert [job_id for job_id in listener.jobs if job_id in job_ids] == list(job_ids)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("survive")
    with start_server(place / "home") as server:
        runs = ServedRuns(server, place / "data")
        listeners = (SocketListener(server.port), SourceListener(server.port))
        for listener in listeners:
            listener.start()
        yield Scene(runs, listeners)
        for listener in listeners:
            listener.end()
        runs.end_all()


def test_a_run_outlives_its_killed_server_stops_on_request_and_is_resumed_to_its_end(scene: Scene) -> None:
    runs = scene.runs
    first = runs.start("outlives", max_train_steps=ENDLESS, checkpoint_step_interval=ENDLESS)
    runs.wait_for_step(first, 5)
    (engine,) = runs.engine(first)
    before = runs.events(first)
    runs.server.kill9()
    time.sleep(0.5)
    assert engine.is_running(), "the run does not need the server"

    runs.server.start()
    assert runs.events(first)[: len(before)] == before, "an event keeps its index for ever"
    runs.wait_for_step(first, runs.step(first) + 20)
    assert runs.status(first) == "running"
    assert [process.pid for process in runs.engine(first)] == [engine.pid], "followed again, not started again"

    assert runs.stop()["status"] == "stopping"
    assert runs.wait_for_end(first)["status"] == "stopped"
    done = runs.steps(first)
    saved = runs.check_announced(first, "outlives")
    assert saved == f"checkpoint-{done[-1]}", "nothing that was trained is lost"
    assert runs.server.get(f"/api/training/checkpoints/validate/{saved}?job_id={first}").json()["valid"] is True

    total = done[-1] + 3
    second = runs.start("outlives", max_train_steps=total, resume_from_checkpoint="latest")
    assert runs.wait_for_end(second)["status"] == "completed", runs.log(second)
    assert runs.steps(second) == [total - 2, total - 1, total]
    runs.check_nothing_left(first)
    scene.check_that_all_heard(first, second)


@pytest.mark.slow
def test_a_killed_engine_is_noticed_its_job_ends_with_the_reason_and_the_queue_moves_on(scene: Scene) -> None:
    runs = scene.runs
    killed = runs.start("killed", max_train_steps=ENDLESS, checkpoint_step_interval=10)
    waiting = runs.start("next", max_train_steps=2)
    assert runs.job(waiting)["job_info"]["queue_position"] == 1
    runs.wait_for_checkpoint(killed)
    began = time.monotonic()
    runs.kill_engine(killed)
    job = runs.wait_for_status(killed, "error", seconds=NOTICED_SECONDS)
    assert time.monotonic() - began < NOTICED_SECONDS

    newest = runs.check_announced(killed, "killed")
    assert job["job_info"]["error_code"] == "interrupted"
    assert "SIGKILL" in job["job_info"]["error"]
    assert job["job_info"]["checkpoint"] in (newest, list_checkpoints(runs.output("killed"))[0].name)
    assert job["job_info"]["checkpoint"] in job["job_info"]["error"]
    assert [event["data"]["code"] for event in runs.events(killed) if event["type"] == "error"] == ["interrupted"]

    assert runs.wait_for_end(waiting)["status"] == "completed", runs.log(waiting)
    scene.check_that_all_heard(killed, waiting)


@pytest.mark.slow
def test_a_cancelled_run_is_gone_at_once_and_one_in_the_queue_never_begins(scene: Scene) -> None:
    runs = scene.runs
    cancelled = runs.start("cancelled", max_train_steps=ENDLESS)
    queued = runs.start("queued", max_train_steps=2)
    runs.wait_for_engine(cancelled)
    assert runs.stop(queued)["status"] == "cancelled"
    assert runs.cancel(cancelled)["status"] == "cancelled"
    assert "ended already" in runs.cancel(cancelled)["message"]
    assert runs.stop(cancelled)["message"] == "No active training job to stop"
    runs.check_nothing_left(cancelled)
    assert runs.engine(queued) == []
    assert list_checkpoints(runs.output("cancelled")) == []
    scene.check_that_all_heard(cancelled, queued)

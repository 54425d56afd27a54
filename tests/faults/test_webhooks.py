"""A webhook that fails in every way there is, for as long as a run lasts: the run does not notice, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.helpers.ports import free_port
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.served_runs import ServedRuns, wait_until

STEPS = 1000
FAULTS: tuple[int | str, ...] = ("refuse", "hang", 500, "redirect", "trickle")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def start(runs: ServedRuns, *urls: str, steps: int = STEPS) -> str:
    targets = json.dumps([{"webhook_type": "raw", "callback_url": url, "secret": "swordfish"} for url in urls])
    name = f"output-{steps}-{len(urls)}"
    return runs.start(name, max_train_steps=steps, webhook_config=targets, webhook_reporting_interval=1, validation_disable=True)


def test_a_webhook_that_fails_for_a_thousand_steps_costs_none_and_loses_nothing(runs: ServedRuns, receiver: Receiver) -> None:
    receiver.behaviour = FAULTS[0]
    job_id = start(runs, receiver.url)
    for number, fault in enumerate(FAULTS):
        receiver.behaviour = fault
        runs.wait_for_step(job_id, (number + 1) * STEPS // len(FAULTS) - 1)
    assert runs.wait_for_end(job_id)["status"] == "completed"
    assert runs.steps(job_id) == list(range(1, STEPS + 1))
    assert receiver.arrived == []
    url = f"/api/training/jobs/{job_id}/webhooks"
    assert runs.server.get(url).json()["counts"]["delivered"] == 0
    receiver.behaviour = 200
    wait_until(lambda: runs.server.get(url).json()["counts"]["pending"] == 0, "every post arrived")
    answer = runs.server.get(url).json()
    assert answer["counts"]["dead"] == 0
    ids = [one.headers["X-SimpleTuner-Delivery"] for one in receiver.arrived]
    assert len(ids) == len(set(ids)) == answer["counts"]["delivered"]
    indexes = [json.loads(one.body)["index"] for one in receiver.arrived]
    assert indexes == sorted(indexes)
    events = runs.check_log(job_id)
    others = [event["index"] for event in events if event["type"] not in ("training.progress", "lifecycle.stage")]
    assert set(others) <= set(indexes)
    assert "webhook_failing" in [event["data"].get("code") for event in events]


def test_posts_outlive_the_server_and_a_receiver_that_was_not_there(runs: ServedRuns) -> None:
    """Nobody listens while the run lasts; the server is killed, started again, and only then the receiver appears."""
    port = free_port()
    job_id = start(runs, f"http://localhost:{port}/hook", steps=5)
    runs.wait_for_end(job_id)
    runs.server.kill9()
    runs.server.start()
    url = f"/api/training/jobs/{job_id}/webhooks"
    with receiving(port) as receiver:
        wait_until(lambda: runs.server.get(url).json()["counts"]["pending"] == 0, "every post arrived")
        ids = [one.headers["X-SimpleTuner-Delivery"] for one in receiver.arrived]
    assert sorted(ids) == sorted(row["delivery"] for row in runs.server.get(url).json()["deliveries"])
    assert len(ids) == len(set(ids))

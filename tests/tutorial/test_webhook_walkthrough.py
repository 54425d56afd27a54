"""A person has a run tell another program what happens, as the tutorial's "Monitoring ad-hoc runs" says."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.models import place_tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.receiver import Receiver, receiving
from tests.helpers.served_runs import ServedRuns, wait_until
from tests.tutorial.commands import Shell, blocks

REPOSITORY = "terminusresearch/pixart-900m-1024-ft-v0.6"
EVENT = {"index", "type", "job_id", "timestamp", "severity", "title", "message", "body", "data"}
SMALL = ["--validation_num_inference_steps=2", "--validation_resolution=64x64", "--validation_step_interval=2", "--disable_benchmark=true"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    hub = tmp_path_factory.mktemp("hub")
    place_tiny_model(hub, REPOSITORY)
    with start_server(tmp_path_factory.mktemp("parent") / "home", environment={"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}) as live:
        yield live


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def shell(server: LiveServer, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    place = tmp_path_factory.mktemp("place")
    generate_images(place / "data/datasets/demo", count=6, size=(80, 80), captions="textfile")
    changes = {
        "http://localhost:8001": server.url,
        "https://example.com/simpletuner": receiver.url,
        "/data/": f"{place}/data/",
        "/workspace/": f"{place}/workspace/",
        '"resolution": 1024,': '"resolution": 64,',
        "--max_train_steps=200": "--max_train_steps=4",
    }
    return Shell(server.home, changes)


def other_fields(start: str) -> str:
    """What the tutorial's dots stand for: the fields of the start above it, but for those that are typed out."""
    fields = re.findall(r"-F (--\S+='[^']*'|--\S+)", start)
    typed_out = ("--model_family",)
    return " ".join(f"-F {field}" for field in fields if not field.startswith(typed_out))


@pytest.fixture(scope="module")
def job_id(shell: Shell, server: LiveServer) -> str:
    """A run that was started with the tutorial's command and has ended, its posts delivered."""
    dataloader, _, start = blocks("Fast path: run without environments")
    shell.type(dataloader)
    (block,) = blocks("Monitoring ad-hoc runs")
    fields = f"{other_fields(start)} {' '.join(f'-F {option}' for option in SMALL)}"
    started = shell.type(block.replace("  ... \\\n", f"  {fields} \\\n"))
    assert "Training Starting" in started, started
    found = re.search(r"Job ID: ([0-9a-f-]{36})", started)
    assert found
    runs = ServedRuns(server, shell.folder)
    ended = runs.wait_for_end(found[1], seconds=300)
    assert ended["status"] == "completed", ended
    url = f"/api/training/jobs/{found[1]}/webhooks"
    wait_until(lambda: server.get(url).json()["counts"]["pending"] == 0, "every post arrived")
    return found[1]


def posted(receiver: Receiver) -> list[dict[str, Any]]:
    return [json.loads(one.body) for one in receiver.arrived]


def test_the_whole_life_of_the_run_is_posted_once_and_in_order(job_id: str, server: LiveServer, receiver: Receiver) -> None:
    events = posted(receiver)
    assert all(set(event) >= EVENT and event["job_id"] == job_id for event in events)
    indexes = [event["index"] for event in events]
    assert indexes == sorted(set(indexes))
    assert len({one.headers["X-SimpleTuner-Delivery"] for one in receiver.arrived}) == len(events)
    statuses = [event["data"]["status"] for event in events if event["type"] == "training.status"]
    assert (statuses[0], statuses[-1]) == ("queued", "completed")
    assert {"lifecycle.stage", "training.status", "training.checkpoint", "training.summary"} <= {event["type"] for event in events}
    answer = server.get(f"/api/training/jobs/{job_id}/webhooks").json()
    assert answer["counts"] == {"pending": 0, "delivered": len(events), "dead": 0}


def test_posts_repeat_the_events_of_the_log(job_id: str, server: LiveServer, receiver: Receiver) -> None:
    log = {event["index"]: event for event in server.get(f"/api/training/events?job_id={job_id}").json()["events"]}
    assert [event for event in posted(receiver) if log[event["index"]] != event] == []
    left_out = {event["type"] for index, event in log.items() if index not in {one["index"] for one in posted(receiver)}}
    assert left_out <= {"training.progress", "lifecycle.stage"}  # at most every ten seconds


def test_an_image_is_posted_as_the_tutorial_shows_it(job_id: str, receiver: Receiver) -> None:
    images = [event for event in posted(receiver) if event["type"] == "validation.image"]
    assert images
    for event in images:
        assert re.fullmatch(r"Validation \(step \d+/\d+\): .+", event["title"])
        assert set(event["data"]) >= {"step", "timestep", "resolution", "validation_type", "prompt", "step_label"}
        (image,) = event["images"]
        assert image["mime_type"] == "image/png"
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert list(Image.open(io.BytesIO(content)).size) == event["data"]["resolution"] == [64, 64]


def test_the_sample_is_there_and_its_form_is_right(server: LiveServer) -> None:
    sample = Path(server.home / "config/webhooks.json")
    assert [entry["webhook_type"] for entry in json.loads(sample.read_text())] == ["raw", "discord"]
    listed = server.get("/api/configs?config_type=webhook").json()
    assert (listed["count"], listed["configs"][0]["name"]) == (1, "webhooks")

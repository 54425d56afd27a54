"""A person steers a run while it trains: the tutorial's manual validation, manual checkpoint and previews, on a live server."""

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
from tests.helpers.served_runs import ServedRuns, wait_until
from tests.tutorial.commands import TUTORIAL, Shell, blocks
from trainer_engine.config.families import find_spec
from trainer_engine.contract.checkpoint_files import verify
from trainer_engine.tiny_models.autoencoders import build_preview_decoder
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

REPOSITORY = "terminusresearch/pixart-900m-1024-ft-v0.6"
MORE = ["--validation_resolution=64x96", "--disable_benchmark=true", "--validation_disable_unconditional=true"]
MORE += ["--validation_step_interval=1000000", "--checkpoint_step_interval=1000000"]
SHOWN = [1, 5, 9, 13, 17, 20]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home, hub, decoder = (tmp_path_factory.mktemp(name) for name in ("home", "hub", "decoder"))
    place_tiny_model(hub, REPOSITORY)
    spec = find_spec("pixart_sigma")
    assert spec is not None
    build_preview_decoder().save_pretrained(decoder)
    place_in_hub_cache(decoder, spec.latents.preview_decoder, hub)
    with start_server(home, environment={"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}) as live:
        yield live


@pytest.fixture(scope="module")
def shell(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    place = tmp_path_factory.mktemp("place")
    generate_images(place / "data/datasets/demo", count=6, size=(80, 80), captions="textfile")
    changes = {
        "http://localhost:8001": server.url,
        "/data/": f"{place}/data/",
        "/workspace/": f"{place}/workspace/",
        '"resolution": 1024,': '"resolution": 64,',
        "--max_train_steps=200": "--max_train_steps=1000000",
        "test shot of <token>": "night bench shot of <token>",
    }
    return Shell(server.home, changes)


def block(heading: str) -> str:
    (found,) = blocks(heading)
    return found


def payload() -> dict[str, Any]:
    """The event that the tutorial shows."""
    found = re.search(
        r"```json\n(\{.*?\n\})\n```", TUTORIAL.read_text(encoding="utf-8").partition("### Stream validation previews")[2], re.S
    )
    assert found
    shown: dict[str, Any] = json.loads(found[1])
    return shown


def test_without_a_run_there_is_nothing_to_steer(shell: Shell, server: LiveServer) -> None:
    for heading in ("Trigger manual validation", "Trigger manual checkpoint"):
        assert json.loads(shell.type(block(heading)))["detail"] == "No active training job"
    assert server.post("/api/training/validation/run").status_code == 400


@pytest.fixture(scope="module")
def job_id(shell: Shell) -> str:
    """A run without an end, started with the tutorial's command for previews."""
    dataloader, _, start = blocks("Fast path: run without environments")
    shell.type(dataloader)
    typed_out = block("Stream validation previews")
    fields = [field for field in re.findall(r"-F (--\S+='[^']*'|--\S+)", start) if field.partition("=")[0] not in typed_out]
    others = " ".join(f"-F {field}" for field in (*fields, *MORE))
    started = shell.type(typed_out.replace("…other fields…", others))
    assert "Training Starting" in started, started
    found = re.search(r"Job ID: ([0-9a-f-]{36})", started)
    assert found
    return found[1]


def images(runs: ServedRuns, job_id: str) -> list[dict[str, Any]]:
    return [event for event in runs.events(job_id) if event["type"] == "validation.image"]


def test_a_run_is_steered_from_curl_to_its_end(shell: Shell, server: LiveServer, job_id: str) -> None:
    runs = ServedRuns(server, shell.folder)
    early = json.loads(shell.type(block("Trigger manual validation")))
    assert early == {"message": "Validation queued for the next gradient sync.", "job_id": job_id}
    finished = wait_until(lambda: [one for one in images(runs, job_id) if one["data"]["validation_type"] == "final"], "an image")
    assert len(finished) == 1, "asked for while the run started up, it waited, and was drawn once"
    previews = [one for one in images(runs, job_id) if one["data"]["validation_type"] == "intermediary"]
    assert [one["data"]["step"] for one in previews] == SHOWN
    compare(previews[1], payload())
    assert finished[0]["data"]["step_label"] == "20/20"

    step = runs.step(job_id)
    asked = json.loads(shell.type(block("Trigger manual checkpoint")))
    assert asked == {"message": "Checkpoint queued for the next gradient sync.", "job_id": job_id}
    name = runs.wait_for_checkpoint(job_id)
    assert int(name.removeprefix("checkpoint-")) >= step
    output = Path(shell.changes["/workspace/"]) / "output/inline-demo"
    assert verify(output / name) == []
    listed = server.post("/api/training/checkpoints").json()
    assert [one["name"] for one in listed["checkpoints"]] == [name]
    assert listed["checkpoints"][0]["verified"]

    shell.type("curl -s -X POST http://localhost:8001/api/training/stop")
    assert runs.wait_for_end(job_id)["status"] == "stopped"
    runs.check_log(job_id)
    assert len([one for one in images(runs, job_id) if one["data"]["validation_type"] == "final"]) == 1


def compare(event: dict[str, Any], shown: dict[str, Any]) -> None:
    """What came has the shape of what the page shows, and the same values where they do not depend on model and size."""
    assert set(event) >= set(shown)
    assert set(event["data"]) >= set(shown["data"])
    for key in ("step", "validation_type", "prompt", "step_label"):
        assert event["data"][key] == shown["data"][key]
    assert (event["type"], event["body"]) == (shown["type"], shown["body"])
    assert event["title"] == "Validation (step 5/20): validation"
    assert event["data"]["resolution"] == [64, 96]
    assert isinstance(event["data"]["timestep"], float)
    (image,), (as_shown,) = event["images"], shown["images"]
    assert set(image) == set(as_shown)
    assert image["mime_type"] == as_shown["mime_type"]
    head, _, data = image["src"].partition(",")
    assert f"{head},..." == as_shown["src"]
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (64, 96)


def test_the_stream_has_the_previews_too(shell: Shell, job_id: str) -> None:
    """Of a run that has ended the whole past comes, and then nothing: curl leaves after some seconds."""
    stream = f"curl -sN --max-time 4 'http://localhost:8001/api/training/events/stream?job_id={job_id}' || true"
    reported = [dict(line.partition(": ")[::2] for line in part.splitlines()) for part in shell.type(stream).split("\n\n")]
    shown = [json.loads(one["data"])["data"] for one in reported if one.get("event") == "validation.image" and "data" in one]
    assert [data["step"] for data in shown if data["validation_type"] == "intermediary"] == SHOWN

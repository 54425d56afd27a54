"""Somebody copies the programs of the page for clients, and runs them against a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.models import place_tiny_model
from tests.helpers.pictures import generate_images
from tests.tutorial.commands import CLIENTS, blocks

pytestmark = pytest.mark.slow
REPOSITORY = "terminusresearch/pixart-900m-1024-ft-v0.6"
SMALL = {
    '"resolution": 1024,': '"resolution": 64,',
    '"--max_train_steps": 500,': '"--max_train_steps": 2, "--mixed_precision": "no", "--optimizer": "torch-adamw", "--lr_warmup_steps": 0,'
    ' "--validation_num_inference_steps": 1,',
    '"1024x1024"': '"64x64"',
    "time.sleep(5)": "time.sleep(0.2)",
}
"""The only differences from the page."""
POLLING, SOCKET = blocks("Following events", CLIENTS, language="python")
(RUN,) = blocks("A run in Python", CLIENTS, language="python")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home, hub = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("hub")
    place_tiny_model(hub, REPOSITORY)
    generate_images(home / "datasets/cats", count=4, size=(64, 64))
    with start_server(home, environment={"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}) as live:
        yield live


def printed(program: str, server: LiveServer, place: Path, *, status: int = 0) -> str:
    """What a program of the page prints, run in a folder of its own without this checkout."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"SIMPLETUNER_URL": server.url}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def small(program: str) -> str:
    assert all(text in program for text in SMALL)
    for old, new in SMALL.items():
        program = program.replace(old, new)
    return program


@pytest.fixture(scope="module")
def trained(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return printed(small(RUN), server, tmp_path_factory.mktemp("notebook"))


def test_the_program_for_a_run_trains_and_says_how_it_ended(trained: str, server: LiveServer) -> None:
    first, *_, last = trained.strip().splitlines()
    assert first.startswith("True ")
    assert last.startswith("completed Training completed at step 2")
    assert (server.home / "output/notebook/pytorch_lora_weights.safetensors").is_file()


def test_the_program_for_a_run_prints_every_problem_of_a_refusal(trained: str, server: LiveServer, tmp_path: Path) -> None:
    again = printed(RUN, server, tmp_path, status=1)
    assert "already exists" in again  # the environment of the first time


def test_the_program_that_polls_sees_every_event_once(trained: str, server: LiveServer, tmp_path: Path) -> None:
    lines = printed(POLLING, server, tmp_path).strip().splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
    assert any(" training.summary " in line for line in lines)


def test_the_program_with_a_socket_sees_steps_and_images_and_ends_with_the_run(trained: str, server: LiveServer, tmp_path: Path) -> None:
    lines = printed(SOCKET, server, tmp_path).strip().splitlines()
    assert [line.split()[0] for line in lines if line[0].isdigit()] == ["1", "2"]
    images = [line.partition("[")[2] for line in lines if line.startswith("image of a cat on a bench")]
    assert images and all("/api/training/jobs/" in image and "data:" not in image for image in images)


def test_every_parameter_of_the_page_is_one_of_the_stream(server: LiveServer) -> None:
    described = json.dumps(server.get("/openapi.json").json()["paths"]["/api/training/events/stream"])
    named = [line.split("`")[1].partition("=")[0] for line in CLIENTS.read_text().splitlines() if line.startswith("| `")]
    assert named == ["since_index", "job_id", "media"]
    assert all(f'"name": "{name}"' in described for name in named)

"""A person follows the PixArt part of the tutorial on a live server, with smaller paths, sizes and step counts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fresh_process import run_without_project
from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.models import place_tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.shapes import META
from tests.tutorial.commands import LORA, README, Shell, blocks

REPOSITORY = "terminusresearch/pixart-900m-1024-ft-v0.6"
EVENT = {"index", "type", "job_id", "timestamp", "severity", "title", "message", "body", "data"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home = tmp_path_factory.mktemp("home")
    hub = tmp_path_factory.mktemp("hub")
    place_tiny_model(hub, REPOSITORY)
    with start_server(home, environment={"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}) as live:
        yield live


@pytest.fixture(scope="module")
def shell(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    place = tmp_path_factory.mktemp("place")
    generate_images(place / "data/datasets/pseudo-camera-10k", count=10, size=(96, 80))
    generate_images(place / "data/datasets/demo", count=6, size=(80, 80), captions="textfile")
    changes = {
        "http://localhost:8001": server.url,
        "/data/": f"{place}/data/",
        "/workspace/": f"{place}/workspace/",
        "/tmp/": f"{place}/",
        '"resolution": 1024,': '"resolution": 64,',
        '"resolution": 1.0,': '"resolution": 0.004096,',
        '"minimum_image_size": 0.25,': '"minimum_image_size": 0.004,',
        '"maximum_image_size": 1.0,': '"maximum_image_size": 0.005,',
        '"target_downsample_size": 1.0,': '"target_downsample_size": 0.005,',
        '"--max_train_steps": 1800': '"--max_train_steps": 6',
        '"--lr_warmup_steps": 500': '"--lr_warmup_steps": 2',
        '"--validation_num_inference_steps": 28': '"--validation_num_inference_steps": 2',
        "1024x1024": "64x64",
        "--max_train_steps=200": "--max_train_steps=3",
    }
    return Shell(server.home, changes)


def answer(text: str) -> Any:
    return json.loads(text)


def get(server: LiveServer, path: str) -> Any:
    return server.get(path).raise_for_status().json()


def post(server: LiveServer, path: str) -> Any:
    return server.post(path).raise_for_status().json()


def wait_for_end(server: LiveServer, *, seconds: float = 240) -> dict[str, Any]:
    """The status once the run has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status: dict[str, Any] = get(server, "/api/training/status")
        if status["status"] in ("completed", "stopped", "cancelled", "error"):
            return status
        time.sleep(0.2)
    raise AssertionError(f"the run did not end within {seconds} s: {status}")


def test_the_schema_is_downloaded_as_the_tutorial_does(shell: Shell) -> None:
    (block,) = [block for block in blocks("Start the server") if "openapi.json" in block]
    info = answer(shell.type(block))
    assert info["title"] == "SimpleTuner"
    assert info["version"]
    schema = json.loads((shell.folder / "openapi.json").read_text())
    assert schema["openapi"].startswith("3.1")
    assert {"configurations", "training"} <= {
        tag for path in schema["paths"].values() for call in path.values() for tag in call.get("tags", [])
    }
    form = json.dumps(schema["paths"]["/api/training/start"]["post"])
    assert "requestBody" in form


def test_the_fast_path_trains_without_an_environment(shell: Shell, server: LiveServer) -> None:
    assert get(server, "/api/configs/active")["name"] is None
    dataloader, validate, start = blocks("Fast path: run without environments")
    shell.type(dataloader)
    small = ["--validation_num_inference_steps=1", "--validation_resolution=64x64"]
    more = " ".join(f"-F {option}" for option in small)
    valid = shell.type(f"{validate.rstrip()} {more}")
    assert "Configuration Valid" in valid, valid
    started = shell.type(f"{start.rstrip()} {more}")
    assert "Training Starting" in started, started
    ended = wait_for_end(server)
    assert ended["status"] == "completed", ended
    assert ended["config"]["--max_train_steps"] == 3
    assert (Path(shell.changes["/workspace/"]) / "output/inline-demo/pipeline/model_index.json").is_file()


def test_the_walkthrough_from_nothing_to_a_trained_pipeline(shell: Shell, server: LiveServer) -> None:
    created = answer(shell.type(*blocks("1. Create the environment")))
    assert created["message"] == "Environment 'pixart-api-demo' created"
    assert set(created["environment"]) >= META
    assert created["config"]["--model_family"] == "pixart_sigma"
    assert (server.home / "config/pixart-api-demo/config.json").is_file()
    assert Path(created["dataloader"]["absolute_path"]).is_file()

    shell.type(*blocks("2. Describe the dataset"))
    updated = answer(shell.type(*blocks("3. Set the hyperparameters")))
    assert updated["message"] == "Configuration 'pixart-api-demo' updated successfully"
    assert updated["metadata"]["tags"] == ["pixart", "api"]
    assert updated["validation"]["warnings"] == []
    stored = get(server, "/api/configs/pixart-api-demo")
    assert stored["config"]["--learning_rate"] == 0.0001
    assert stored["config"]["--train_batch_size"] == 2
    assert len({key.lstrip("-") for key in stored["config"]}) == len(stored["config"])

    activated = answer(shell.type(*blocks("4. Activate the environment")))
    assert activated == {"message": "Configuration 'pixart-api-demo' is now active", "active": "pixart-api-demo"}

    valid = shell.type(*blocks("5. Validate"))
    assert "alert alert-success" in valid
    assert "Configuration Valid" in valid

    started = shell.type(*blocks("6. Start"))
    assert "Training Starting" in started
    job_id = re.search(r"Job ID:\s*(?:<[^>]+>)?\s*([0-9a-f-]{8,})", started)
    assert job_id, started

    ended = wait_for_end(server)
    assert ended["status"] == "completed", ended
    assert ended["job_id"] == job_id[1]
    check_events(server, job_id[1])
    check_results(shell, server)

    status, events, stop_and_cancel = split_last_step()
    assert answer(shell.type(status))["progress"]["percent"] == 100
    assert answer(shell.type(events))["next_index"] > 10
    printed = shell.type(stop_and_cancel.replace("<JOB_ID>", job_id[1]))
    assert '{"message":"No active training job to stop"}' in printed.replace('": "', '":"')
    assert "No Active Training" in printed


@pytest.mark.slow
def test_the_first_lora_of_the_readme_trains(shell: Shell, server: LiveServer, tmp_path: Path) -> None:
    generate_images(tmp_path, count=4, size=(80, 80))
    changes = {
        "http://localhost:8001": server.url,
        "~/Pictures/cats/*.jpg": f"{tmp_path}/*.png",
        "curl -s -X POST $API/configs/first-lora/activate": (
            "sed -i 's/1024/64/' config/first-lora/multidatabackend.json\ncurl -s -X POST $API/configs/first-lora/activate"
        ),
        "--max_train_steps=500": "--max_train_steps=3",
        "1024x1024": "64x64",
    }
    block = blocks("A first LoRA", README)[-1]
    assert all(text in block for text in changes)
    assert "true\n[]\n[]\n" in Shell(server.home, changes).type(block)
    assert wait_for_end(server)["status"] == "completed"
    assert (server.home / "output/first-lora/pytorch_lora_weights.safetensors").is_file()


@pytest.mark.slow
def test_the_first_lora_over_http_trains(server: LiveServer, tmp_path: Path) -> None:
    generate_images(tmp_path, count=4, size=(80, 80))
    small = '"--mixed_precision": "no", "--optimizer": "torch-adamw", "--resolution": 64, "--validation_resolution": "64x64"'
    changes = {
        "http://localhost:8001": server.url,
        "~/Pictures/cats/*": f"{tmp_path}/*.png",
        '"example": "flux_dev_lora"': '"model_family": "pixart_sigma"',
        '"--base_model_precision": "int8-quanto", "--max_train_steps": 1500': f'{small}, "--lr_warmup_steps": 1, "--max_train_steps": 3',
    }
    (block,) = blocks("The same over HTTP", LORA)
    assert all(text in block for text in changes)
    printed = Shell(server.home, changes).type(block)
    assert "true\n[]\n" in printed and "1 image in datasets/cats" in printed
    assert wait_for_end(server)["status"] == "completed"
    assert (server.home / "output/cats/pytorch_lora_weights.safetensors").is_file()


def split_last_step() -> tuple[str, str, str]:
    """The three parts of step 7: status, events, stop and cancel."""
    (block,) = blocks("7. Watch and stop")
    status, events, ends = block.strip().split("\n\n")
    return status, events, ends


def check_events(server: LiveServer, job_id: str) -> None:
    page = get(server, "/api/training/events?since_index=0")
    assert page["job_id"] == job_id
    events = page["events"]
    assert [event["index"] for event in events] == list(range(len(events)))
    assert all(set(event) >= EVENT for event in events)
    steps = [event["data"]["step"] for event in events if event["type"] == "training.progress"]
    assert steps == [1, 2, 3, 4, 5, 6]
    stages = {event["stage"]["key"] for event in events if event["type"] == "lifecycle.stage"}
    assert {"init_load_base_model", "init_vae_cache", "init_text_embed_cache", "checkpoint_save", "model_save"} <= stages
    images = [event for event in events if event["type"] == "validation.image"]
    assert any("<token>" in event["body"] for event in images)
    assert all(event["images"][0]["src"].startswith("data:image/png;base64,") for event in images)
    assert [event for event in events if event["type"] == "training.checkpoint"][-1]["checkpoint"]["is_final"]
    assert events[-1]["type"] in ("training.status", "training.summary")


def check_results(shell: Shell, server: LiveServer) -> None:
    listed = post(server, "/api/training/checkpoints")
    assert listed["total"] == len(listed["checkpoints"]) >= 1
    newest = listed["checkpoints"][0]
    assert (newest["name"], newest["step"], newest["is_latest"]) == ("checkpoint-6", 6, True)
    assert get(server, "/api/training/checkpoints/validate/checkpoint-6")["valid"] is True
    output = Path(shell.changes["/workspace/"]) / "output/pixart900m"
    assert list((output / "validation_images").glob("step_6_validation_*_64x64.png"))
    program = (
        "import torch; from diffusers import PixArtSigmaPipeline;"
        f"trained = PixArtSigmaPipeline.from_pretrained({str(output / 'pipeline')!r});"
        f"base = PixArtSigmaPipeline.from_pretrained({REPOSITORY!r});"
        "pairs = list(zip(trained.transformer.parameters(), base.transformer.parameters()));"
        "assert any(not torch.equal(a.float(), b.float()) for a, b in pairs);"
        "image = trained('a red square', num_inference_steps=2, height=64, width=64, use_resolution_binning=False).images[0];"
        "print('drawn', image.size)"
    )
    said = run_without_project(program, place=output, variables=server.environment)
    assert said.strip().endswith("drawn (64, 64)")

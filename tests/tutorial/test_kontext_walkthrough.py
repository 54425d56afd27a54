"""A person follows the Kontext part of the tutorial on a live server, with smaller paths, sizes and step counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.fresh_process import run_without_project
from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.models import tiny_model
from tests.helpers.pictures import generate_images
from tests.tutorial.commands import Shell, blocks
from tests.tutorial.test_pixart_walkthrough import wait_for_end
from trainer_engine.config.families import find_spec
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

SPEC = find_spec("flux")
STRANGER = """
import torch
from diffusers import FluxKontextPipeline
from lycoris import create_lycoris_from_weights
from safetensors.torch import load_file

folder, base = sys.argv[1:3]
pipeline = FluxKontextPipeline.from_pretrained(base)
pipeline.set_progress_bar_config(disable=True)


def image():
    return pipeline(
        image=torch.full((1, 16, 8, 8), 0.5), prompt="make it number 1", width=64, height=64, max_area=4096, _auto_resize=False,
        num_inference_steps=2, guidance_scale=2.5, generator=torch.Generator().manual_seed(0),
    ).images[0].tobytes()


plain = image()
adapter, _ = create_lycoris_from_weights(1.0, f"{folder}/pytorch_lora_weights.safetensors", pipeline.transformer)
adapter.apply_to()
with_adapter = image()
adapter.restore()
assert len(adapter.loras) == 30
assert with_adapter != plain
assert image() == plain
print("drew with the adapter")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home, hub = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("hub")
    assert SPEC is not None
    place_in_hub_cache(tiny_model("flux", flavour="kontext"), SPEC.repository("kontext"), hub)
    variables = {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "HOME": str(home), "WANDB_MODE": "offline"}
    with start_server(home, environment=variables) as live:
        yield live


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    generate_images(folder / "data/datasets/kontext/edit", count=8, size=(96, 80), captions="textfile", kinds=("png",))
    for edit in (folder / "data/datasets/kontext/edit").glob("*.png"):
        reference = folder / "data/datasets/kontext/reference" / edit.name
        reference.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(edit) as picture:
            picture.convert("L").convert("RGB").save(reference)
    return folder


@pytest.fixture(scope="module")
def shell(server: LiveServer, place: Path) -> Shell:
    changes = {
        "http://localhost:8001": server.url,
        "/data/": f"{place}/data/",
        "/workspace/": f"{place}/workspace/",
        "/tmp/": f"{place}/",
        '"resolution": 1024,': '"resolution": 64,',
        '"minimum_image_size": 768,': '"minimum_image_size": 64,',
        '"maximum_image_size": 1536,': '"maximum_image_size": 84,',
        '"target_downsample_size": 1024,': '"target_downsample_size": 80,',
        '"--max_train_steps": 12000': '"--max_train_steps": 4',
        '"--lr_warmup_steps": 200': '"--lr_warmup_steps": 1',
        '"--validation_num_inference_steps": 30': '"--validation_num_inference_steps": 1',
        "1024x1024": "64x64",
        '"--report_to": "wandb"': '"--report_to": "none"',
    }
    return Shell(server.home, changes)


def get(server: LiveServer, path: str) -> Any:
    return server.get(path).raise_for_status().json()


def launch(shell: Shell) -> tuple[str, str]:
    """(what validate says, what start says)"""
    (block,) = blocks("4. Activate, validate, and launch")
    activate, validate, start = (part for part in block.split("\n\n") if part.strip())
    shell.type(activate)
    valid = shell.type(validate)
    return valid, shell.type(start)


@pytest.fixture(scope="module")
def created(shell: Shell) -> Any:
    """What the first step answers. The second one, which describes the datasets, is taken too."""
    answer = json.loads(shell.type(*blocks("1. Provision the environment")))
    shell.type(*blocks("2. Describe the paired dataloader"))
    return answer


def test_the_walkthrough_from_nothing_to_an_adapter_that_is_used(created: Any, shell: Shell, server: LiveServer, place: Path) -> None:
    assert created["message"] == "Environment 'kontext-api-demo' created"
    assert created["environment"]["lora_type"] == "lycoris"
    assert (server.home / "config/kontext-api-demo/lycoris_config.json").is_file()
    updated = json.loads(shell.type(*blocks("3. Apply Kontext-specific hyperparameters")))
    assert updated["message"] == "Configuration 'kontext-api-demo' updated successfully"
    assert updated["validation"]["warnings"] == []
    valid, started = launch(shell)
    assert "Configuration Valid" in valid, valid
    assert "alert-warning" not in valid
    for name in ("lora_rank", "lora_dropout"):
        assert name in valid
    assert "Training Starting" in started, started
    ended = wait_for_end(server)
    assert ended["status"] == "completed", ended
    output = place / "workspace/output/kontext"
    assert {path.name for path in output.iterdir()} >= {
        "pytorch_lora_weights.safetensors",
        "lycoris_config.json",
        "README.md",
        "checkpoint-4",
    }
    assert len(list((output / "validation_images").glob("step_4_*.png"))) == 8
    use_it(output)


def use_it(output: Path) -> None:
    """A script that knows diffusers, peft and lycoris alone."""
    said = run_without_project(STRANGER, str(output), str(tiny_model("flux", flavour="kontext")), place=output)
    assert "drew with the adapter" in said


@pytest.mark.slow
@pytest.mark.usefixtures("created")
def test_a_run_reports_to_wandb_without_a_network(shell: Shell, server: LiveServer, place: Path) -> None:
    changes = {**shell.changes, '"--report_to": "wandb"': '"--report_to": "wandb"', "output/kontext": "output/kontext-wandb"}
    again = Shell(shell.folder, changes)
    again.type(*blocks("3. Apply Kontext-specific hyperparameters"))
    valid, _ = launch(again)
    assert "Configuration Valid" in valid
    assert "offline" in valid
    ended = wait_for_end(server)
    assert ended["status"] == "completed", ended
    (file,) = (place / "workspace/output/kontext-wandb/logs").rglob("run-*.wandb")
    assert b"grad_norm" in file.read_bytes()
    events = get(server, "/api/training/events?since_index=0")["events"]
    assert not [event for event in events if "tracker_failed" in json.dumps(event)]

"""A client that openapi-python-client makes from the schema drives a run, as it is and with what it sends by itself."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.models import place_tiny_model, tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.served_runs import ENDED, wait_until
from trainer_engine.config.families import find_spec
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache

REPOSITORY = "terminusresearch/pixart-900m-1024-ft-v0.6"
PACKAGE = "generated_client"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home, hub = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("hub")
    place_tiny_model(hub, REPOSITORY)
    generate_images(home / "pictures", count=4, size=(64, 64))
    with start_server(home, environment={"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"}) as live:
        yield live


@pytest.fixture(scope="module")
def package(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The client, made from what the server says of itself."""
    folder = tmp_path_factory.mktemp("client")
    schema = folder / "openapi.json"
    schema.write_bytes(httpx.get(f"{server.url}/openapi.json").content)
    command = [
        sys.executable,
        "-m",
        "openapi_python_client",
        "generate",
        "--path",
        schema,
        "--output-path",
        folder / PACKAGE,
        "--meta",
        "none",
    ]
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, check=True, capture_output=True, env=variables)
    sys.path.insert(0, str(folder))
    yield importlib.import_module(PACKAGE)
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
        del sys.modules[name]


class Calls:
    """The generated functions, by operation, and the generated shapes, by name."""

    def __init__(self, package: ModuleType, server: LiveServer) -> None:
        self.package = package
        self.client = package.Client(base_url=server.url, timeout=60)
        self.models: Any = importlib.import_module(f"{PACKAGE}.models")

    def __call__(self, operation: str, *path: str, tag: str = "training", **arguments: Any) -> Any:
        module = importlib.import_module(f"{PACKAGE}.api.{tag}.{operation}")
        answer = module.sync_detailed(*path, client=self.client, **arguments)
        assert answer.status_code == 200, answer.content
        assert answer.parsed is not None
        return answer.parsed


@pytest.mark.slow
def test_every_generated_module_can_be_imported(package: ModuleType) -> None:
    for found in pkgutil.walk_packages(package.__path__, f"{PACKAGE}."):
        importlib.import_module(found.name)


@pytest.mark.slow
def test_a_generated_client_creates_changes_activates_validates_starts_and_watches(package: ModuleType, server: LiveServer) -> None:
    call = Calls(package, server)
    body = call.models.CreateEnvironment(name="generated", model_family="pixart_sigma", model_type="full")
    made = call("configs_create", tag="configurations", body=body)
    datasets = Path(made.dataloader.absolute_path)
    entries = json.loads(datasets.read_text())
    entries[0] |= {"instance_data_dir": str(server.home / "pictures"), "resolution": 64, "resolution_type": "pixel"}
    entries[0] |= dict.fromkeys(("minimum_image_size", "maximum_image_size", "target_downsample_size"))
    datasets.write_text(json.dumps(entries))
    config = call("configs_get", "generated", tag="configurations").config
    config.additional_properties |= {
        "--pretrained_model_name_or_path": REPOSITORY,
        "--output_dir": "output/generated",
        "--resolution": 64,
        "--resolution_type": "pixel",
        "--max_train_steps": 2,
        "--num_train_epochs": 0,
        "--mixed_precision": "no",
        "--validation_disable": True,
        "--lr_warmup_steps": 0,
    }
    stored = call.models.UpdateEnvironment.from_dict({"config": config.to_dict()})
    assert call("configs_update", "generated", tag="configurations", body=stored).metadata.name == "generated"
    assert call("configs_activate", "generated", tag="configurations").active == "generated"
    form = call.models.TrainingValidateJsonBody.from_dict({"--train_batch_size": 1})
    assert call("training_validate", body=form).valid is True
    started = call("training_start", body=call.models.TrainingStartJsonBody.from_dict({"--train_batch_size": 1}))
    assert wait_for_end(call, started.job_id) == "completed"
    assert call("training_cancel", body=call.models.TrainingCancelJsonBody()).status == "completed"


def wait_for_end(call: Calls, job_id: object) -> str:
    def ended() -> str | None:
        status = call("training_status")
        assert status.job_id == job_id
        return str(status.status) if str(status.status) in ENDED else None

    return str(wait_until(ended, "the end of the run"))


@pytest.fixture(scope="module")
def pairs(server: LiveServer) -> Path:
    """A folder with images after an edit and one with those before it, and the Kontext model where the server finds it."""
    spec = find_spec("flux")
    assert spec is not None
    place_in_hub_cache(tiny_model("flux", flavour="kontext"), spec.repository("kontext"), Path(server.environment["HF_HOME"]))
    folder = server.home / "pairs"
    for kind in ("edit", "reference"):
        generate_images(folder / kind, count=4, size=(64, 64), captions="textfile", kinds=("png",))
    return folder


@pytest.mark.slow
def test_a_generated_client_trains_a_lycoris_adapter_of_kontext_and_finds_its_file(
    package: ModuleType, server: LiveServer, pairs: Path
) -> None:
    call = Calls(package, server)
    body = {"name": "edits", "model_family": "flux", "model_flavour": "kontext", "model_type": "lora", "lora_type": "lycoris"}
    assert call("configs_create", tag="configurations", body=call.models.CreateEnvironment.from_dict(body)).environment.name == "edits"
    common = {"type": "local", "resolution": 64, "resolution_type": "pixel_area"}
    entries = [
        {"id": "after", **common, "dataset_type": "image", "instance_data_dir": str(pairs / "edit"), "conditioning_data": ["before"]}
        | {"caption_strategy": "textfile", "cache_dir_vae": "cache/after", "minimum_image_size": 64},
        {"id": "before", **common, "dataset_type": "conditioning", "instance_data_dir": str(pairs / "reference")}
        | {"conditioning_type": "reference_strict", "cache_dir_vae": "cache/before"},
        {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/texts"},
    ]
    datasets = call.models.ConfigsDatasetsPutWrittenDatasets.from_dict({"datasets": entries})
    assert call("configs_datasets_put", "edits", tag="configurations", body=datasets).problems == []
    config = call("configs_get", "edits", tag="configurations").config
    config.additional_properties |= {
        "--output_dir": "output/edits",
        "--resolution": 64,
        "--resolution_type": "pixel_area",
        "--max_train_steps": 2,
        "--num_train_epochs": 0,
        "--mixed_precision": "no",
        "--optimizer": "torch-adamw",
        "--validation_disable": True,
        "--lr_warmup_steps": 0,
    }
    call("configs_update", "edits", tag="configurations", body=call.models.UpdateEnvironment.from_dict({"config": config.to_dict()}))
    assert call("configs_activate", "edits", tag="configurations").active == "edits"
    assert call("training_validate", body=call.models.TrainingValidateJsonBody.from_dict({})).valid is True
    started = call("training_start", body=call.models.TrainingStartJsonBody.from_dict({}))
    assert wait_for_end(call, started.job_id) == "completed"
    names = [one["path"] for one in call("training_job_files", str(started.job_id)).to_dict()["files"]]
    assert any(name.endswith("pytorch_lora_weights.safetensors") for name in names), names

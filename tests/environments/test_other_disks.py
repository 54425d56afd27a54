"""Every path of a configuration may lie on a disk that the server was started for, whatever the disk is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.json_options import load_publishing
from environments.resolve.run import resolve_run
from environments.resolve.webhook_targets import load_webhooks
from tests.environments.resolve.test_run import DATASETS, ENVIRONMENT
from trainer_engine.contract.errors import Problem

OPTIONS = (
    "output_dir",
    "cache_dir",
    "cache_dir_vae",
    "cache_dir_text",
    "data_backend_config",
    "lycoris_config",
    "init_lora",
    "init_lora_ema",
    "accelerate_config",
    "pretrained_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_t5_model_name_or_path",
    "pretrained_evaluation_model_name_or_path",
    "validation_adapter_path",
    "validation_adapter_config",
    "user_prompt_library",
    "quantization_config",
    "publishing_config",
    "webhook_config",
)
FIELDS = (
    (0, "instance_data_dir"),
    (0, "cache_dir_vae"),
    (1, "cache_dir"),
    (2, "instance_data_dir"),
    (2, "cache_dir_vae"),
    (3, "instance_data_dir"),
    (3, "cache_dir_vae"),
)
MORE = [
    {"id": "references", "type": "local", "dataset_type": "conditioning", "conditioning_type": "reference_strict", "source": "images"},
    {"id": "held", "type": "local", "dataset_type": "eval"},
]
FILES = {
    "data_backend_config": DATASETS,
    "lycoris_config": {"algo": "lokr"},
    "validation_adapter_config": [],
    "user_prompt_library": {"a": "b"},
    "quantization_config": {},
    "publishing_config": [],
    "webhook_config": [],
    "accelerate_config": {},
}


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    for name in ("home/config/demo", "home/datasets/demo", "home/state", "disk/folder"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "home/config/demo/multidatabackend.json").write_text(json.dumps(DATASETS))
    return tmp_path / "disk"


def closed(home: Home, values: dict[str, Any]) -> dict[str, Problem]:
    problems = resolve_run(home, {**ENVIRONMENT, **values}, {}).problems
    problems += load_webhooks(str(values.get("webhook_config", "")), home)[1]
    problems += load_publishing(str(values.get("publishing_config", "")), home)[1]
    found = [problem for problem in problems if problem.code == "outside_roots"]
    assert len(found) == len({problem.option for problem in found}), "a refusal is listed once"
    return {problem.option: problem for problem in found}


def says_what_to_do(problem: Problem) -> bool:
    return "--root DIR" in problem.hint and "SIMPLETUNER_ROOTS" in problem.hint and "outside the folders" in problem.message


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("by", ["root", "link"])
def test_every_path_option_may_lead_to_another_disk(disk: Path, option: str, by: str) -> None:
    path = disk / "folder"
    if option in FILES:
        path = disk / "file.json"
        path.write_text(json.dumps(FILES[option]))
    values = {"model_type": "lora", "lora_type": "lycoris", "use_ema": True, "init_lora": "nowhere", option: str(path)}
    bare = Home(disk.parent / "home", roots=())
    refusals = closed(bare, values)
    assert list(refusals) == [option] and says_what_to_do(refusals[option])
    if by == "root":
        assert not closed(Home(bare.root, roots=(), more_roots=(disk,)), values)
        return
    (bare.root / "link").symlink_to(disk)
    assert not closed(bare, {**values, option: f"link/{path.name}"})
    assert not closed(bare, {**values, option: str(bare.root / "link" / path.name)})


@pytest.mark.parametrize(("number", "field"), FIELDS)
def test_every_path_of_a_dataset_may_lead_to_another_disk(disk: Path, number: int, field: str) -> None:
    entries: list[dict[str, Any]] = [dict(entry) for entry in [*DATASETS, *MORE]]
    for entry in entries:
        if entry["dataset_type"] != "text_embeds":
            entry.setdefault("instance_data_dir", "datasets/demo")
    entries[number][field] = str(disk / "folder")
    bare = Home(disk.parent / "home", roots=())
    (bare.config / "demo/multidatabackend.json").write_text(json.dumps(entries))
    refusals = closed(bare, {})
    assert list(refusals) == [f"dataloader[{number}].{field}"] and says_what_to_do(refusals[f"dataloader[{number}].{field}"])
    assert not closed(Home(bare.root, roots=(), more_roots=(disk,)), {})
    entries[number][field] = "link/folder"
    (bare.root / "link").symlink_to(disk)
    (bare.config / "demo/multidatabackend.json").write_text(json.dumps(entries))
    assert not closed(bare, {})


def test_an_adapter_that_only_validations_see_may_lie_on_another_disk(disk: Path) -> None:
    (disk / "night.safetensors").write_bytes(b"")
    values = {"validation_adapter_config": json.dumps([{"name": "night", "path": str(disk / "night.safetensors"), "strength": 1}])}
    bare = Home(disk.parent / "home", roots=())
    assert [says_what_to_do(problem) for problem in closed(bare, values).values()] == [True]
    assert not closed(Home(bare.root, roots=(), more_roots=(disk,)), values)

"""The adapter file of an environment: made with it, shown, replaced whole or not at all, checked without being stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.environments.conftest import Api

KONTEXT = {"model_family": "flux", "model_flavour": "kontext", "model_type": "lora", "lora_type": "lycoris"}
GOOD: dict[str, Any] = {
    "algo": "loha",
    "multiplier": 0.5,
    "linear_dim": 8,
    "linear_alpha": 4,
    "apply_preset": {"target_module": ["Attention"]},
}


def test_a_lycoris_environment_begins_with_an_adapter_file_and_paired_datasets(api: Api) -> None:
    made = api.create(**KONTEXT)
    assert made["environment"]["lora_type"] == "lycoris"
    assert made["config"]["--lora_type"] == "lycoris"
    assert made["config"]["--lycoris_config"] == "demo/lycoris_config.json"
    document = json.loads((api.home / "config/demo/lycoris_config.json").read_text())
    assert document["algo"] == "lokr"
    assert document["apply_preset"]["target_module"] == ["FluxAttention", "FeedForward"]
    entries = json.loads((api.home / "config/demo/multidatabackend.json").read_text())
    assert [entry["dataset_type"] for entry in entries] == ["image", "conditioning", "text_embeds"]
    assert entries[0]["conditioning_data"] == [entries[1]["id"]]
    assert [row["name"] for row in api.get("/?config_type=lycoris")["configs"]] == ["demo"]


def test_a_standard_adapter_needs_no_file(api: Api) -> None:
    made = api.create(model_type="lora")
    assert made["config"]["--lora_type"] == "standard"
    assert "--lycoris_config" not in made["config"]
    assert not (api.home / "config/demo/lycoris_config.json").exists()
    assert api.get("/?config_type=lycoris")["configs"] == []
    assert api.call("GET", "/environments/demo/lycoris").status_code == 422
    assert api.refused("PUT", "/environments/demo/lycoris", GOOD) == (422, [("lora_type", "no_lycoris")])


def test_the_file_is_shown_and_replaced(api: Api) -> None:
    api.create(**KONTEXT)
    shown = api.get("/environments/demo/lycoris")
    assert shown["config"]["algo"] == "lokr"
    assert shown["validation"] == {"valid": True, "errors": [], "warnings": [], "problems": []}
    for body in (GOOD, {"config": GOOD}):
        answer = api.call("PUT", "/environments/demo/lycoris", body)
        assert answer.status_code == 200, answer.content
        assert answer.json()["validation"]["valid"] is True
        assert json.loads((api.home / "config/demo/lycoris_config.json").read_text()) == GOOD
    assert api.get("/environments/demo/lycoris")["config"] == GOOD


@pytest.mark.parametrize("body", [{**GOOD, "algo": "lork"}, {**GOOD, "linear_dim": 0, "apply_preset": {"target_module": ["X"]}}, []])
def test_a_wrong_file_changes_nothing(api: Api, body: Any) -> None:
    api.create(**KONTEXT)
    path = api.home / "config/demo/lycoris_config.json"
    before = path.read_bytes()
    answer = api.call("PUT", "/environments/demo/lycoris", body)
    assert answer.status_code == 422, answer.content
    assert answer.json()["problems"]
    assert path.read_bytes() == before


def test_a_file_spoilt_by_hand_is_reported_and_can_be_replaced(api: Api) -> None:
    api.create(**KONTEXT)
    (api.home / "config/demo/lycoris_config.json").write_text("{")
    assert api.refused("GET", "/environments/demo/lycoris") == (422, [("lycoris_config", "unreadable_file")])
    assert api.call("PUT", "/environments/demo/lycoris", GOOD).status_code == 200
    assert api.get("/environments/demo/lycoris")["config"] == GOOD


def test_an_unknown_environment_has_no_adapter_file(api: Api) -> None:
    assert api.call("GET", "/environments/nobody/lycoris").status_code == 404
    assert api.call("PUT", "/environments/nobody/lycoris", GOOD).status_code == 404


def test_a_file_is_checked_without_being_stored(api: Api) -> None:
    assert api.post("/lycoris/validate", GOOD)["valid"] is True
    answer = api.post("/lycoris/validate", {"algo": "lork", "factor": 0})
    assert answer["valid"] is False
    assert {problem["option"] for problem in answer["problems"]} >= {
        "lycoris_config.algo",
        "lycoris_config.factor",
        "lycoris_config.multiplier",
    }
    named = api.post("/lycoris/validate", {"config": {**GOOD, "apply_preset": {"target_module": ["Attn"]}}, "model_family": "flux"})
    assert "FluxAttention" in named["problems"][0]["expected"]


def test_deleting_an_environment_takes_its_adapter_file_along(api: Api) -> None:
    api.create(**KONTEXT)
    assert api.call("DELETE", "/demo").status_code == 200
    assert not (api.home / "config/demo").exists()

"""The files that people bring from the trainer of the format: its first config.json, and what its page exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.files.config_files import without_marks
from simpletuner_site.train.config_file import read_config
from tests.environments.conftest import Api

FIRST: dict[str, Any] = {
    "--model_family": "flux",
    "--model_type": "lora",
    "--output_dir": "output/first",
    "--data_backend_config": "demo/multidatabackend.json",
    "--push_to_hub": "false",
    "--validation_torch_compile": "false",
    "--disable_benchmark": "false",
}
WRAPPED = {"_metadata": {"name": "x", "created": "2026-01-01", "nested": {"config": 1}}, "config": FIRST}


def test_the_first_configuration_is_stored_with_a_note(api: Api) -> None:
    api.create()
    for body in ({"name": "demo", "config": FIRST}, {"name": "demo", "config": WRAPPED}, WRAPPED):
        answer = api.call("PUT", "/demo", body)
        assert answer.status_code == 200, answer.content
        advice = answer.json()["validation"]
        assert [text for text in advice["suggestions"] if "validation_torch_compile" in text] == [
            "validation_torch_compile: validation_torch_compile is no longer part of the format. Its value leaves it off, so it is ignored."
            " (remove it from the configuration)"
        ]
        config = api.get("/demo")["config"]
        assert config["--model_family"] == "flux" and "--validation_torch_compile" not in config and "--config" not in config


@pytest.mark.parametrize("document", [FIRST, WRAPPED, {"config": FIRST}])
def test_a_file_is_read_out_of_its_wrapper(api: Api, document: dict[str, Any]) -> None:
    (api.home / "config/older").mkdir()
    (api.home / "config/older/config.json").write_text(json.dumps(document))
    shown = api.get("/older")
    assert shown["config"]["--model_family"] == "flux" and "problems" not in shown


def test_the_command_line_reads_a_wrapped_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(WRAPPED))
    assert read_config(tmp_path / "config.json") == FIRST


def test_an_exported_configuration_is_imported_again(api: Api) -> None:
    api.create()
    exported = api.get("/demo/export")
    assert "_metadata" in exported
    assert api.call("PUT", "/demo", exported).status_code == 200


def test_other_objects_called_config_are_options_that_do_not_exist() -> None:
    for values in ({"config": FIRST, "--seed": 1}, {"config": "x"}, {"_metadata": {}}):
        assert without_marks(values) == values


def test_validate_reads_a_wrapped_body(api: Api) -> None:
    answer = api.client.post("/api/training/validate", WRAPPED, format="json", HTTP_ACCEPT="application/json").json()
    assert not [problem for problem in answer["problems"] if problem["option"] in ("_metadata", "config", "model_family")]
    assert [note["code"] for note in answer["notes"] if note["option"] == "validation_torch_compile"] == ["gone"]

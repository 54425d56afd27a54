"""``POST /api/configs/import``: JSON, text and files become environments, and nothing that exists is replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from PIL import Image

from environments.home import current_home
from environments.models import Environment
from environments.resolve.run import resolve_run
from tests.environments.conftest import Api
from tests.environments.imports.test_ai_toolkit import FLUX_LORA, KONTEXT_PAIRS
from tests.environments.imports.test_kohya import DATASETS, LOKR
from tests.helpers.models import tiny_model
from training.preflight.run import examine_run


def imported(api: Api, **body: Any) -> Any:
    return api.post("/import", {"name": "mine", **body})


def test_text_becomes_an_environment_with_its_files(api: Api) -> None:
    answer = imported(api, text=KONTEXT_PAIRS)
    folder = api.home / "config" / "mine"
    assert list(answer) == ["message", "environment", "config", "dataloader", "format", "left_out"]
    assert answer["format"] == "ai-toolkit" and answer["environment"]["name"] == "mine"
    assert json.loads((folder / "config.json").read_text()) == answer["config"] == api.get("/mine")["config"]
    assert answer["dataloader"]["absolute_path"] == str(folder / "multidatabackend.json")
    assert [one["id"] for one in json.loads((folder / "multidatabackend.json").read_text())][:3] == ["after", "before", "masks"]
    assert json.loads((folder / "lycoris_config.json").read_text())["algo"] == "lokr"
    assert [list(one) for one in answer["left_out"]] == [["name", "value", "reason"]] * len(answer["left_out"])
    assert {"config.process[0].train.timestep_type"} == {one["name"] for one in answer["left_out"]}


def test_several_texts_and_a_family_are_taken(api: Api) -> None:
    answer = imported(api, text=[LOKR.replace("sd_xl_base_1.0", "unnamed"), DATASETS], format="kohya", model_family="sdxl")
    assert answer["config"]["--model_family"] == "sdxl" and answer["format"] == "kohya"


def test_a_form_takes_files(api: Api) -> None:
    files = [SimpleUploadedFile("train.toml", LOKR.encode()), SimpleUploadedFile("data.toml", DATASETS.encode())]
    answer = Client().post("/api/configs/import", {"name": "mine", "file": files}, headers={"accept": "application/json"})
    assert answer.status_code == 200, answer.content
    assert answer.json()["config"]["--optimizer"] == "prodigy"


def test_an_export_comes_back_as_it_was(api: Api) -> None:
    api.create(name="first")
    exported = api.get("/first/export")
    answer = imported(api, config=exported, datasets=json.loads((api.home / "config/first/multidatabackend.json").read_text()))
    assert {**answer["config"], "--data_backend_config": ""} == {**exported["config"], "--data_backend_config": ""}
    first, mine = (json.loads((api.home / f"config/{name}/multidatabackend.json").read_text()) for name in ("first", "mine"))
    assert first == mine and answer["format"] == "simpletuner"


def test_a_name_that_is_taken_is_refused_and_nothing_changes(api: Api) -> None:
    imported(api, text=KONTEXT_PAIRS)
    before = {path: path.read_bytes() for path in (api.home / "config").rglob("*") if path.is_file()}
    assert api.refused("POST", "/import", {"name": "mine", "text": FLUX_LORA}) == (409, [("name", "exists")])
    assert {path: path.read_bytes() for path in (api.home / "config").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("file", ["multidatabackend.json", "lycoris_config.json"])
def test_a_file_that_lies_there_already_is_neither_replaced_nor_used(api: Api, file: str) -> None:
    path = api.home / "config" / "mine" / file
    path.parent.mkdir(parents=True)
    path.write_text("[]")
    assert api.refused("POST", "/import", {"name": "mine", "text": KONTEXT_PAIRS}) == (422, [("name", "exists")])
    assert path.read_text() == "[]" and not Environment.objects.exists()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, [("name", "required")]),
        ({"name": "mine"}, [("config", "missing")]),
        ({"name": "mine", "text": 3}, [("text", "invalid")]),
        ({"name": "mine", "text": ["a"] * 9}, [("text", "too_many")]),
        ({"name": "mine", "text": "a: &x 1"}, [("text", "unreadable_file")]),
        ({"name": "mine", "text": "a: 1"}, [("format", "unknown_format")]),
        ({"name": "mine", "config": {"a": 1}}, [("format", "unknown_format")]),
        ({"name": "mine", "text": FLUX_LORA, "format": "x"}, [("format", "unknown_format")]),
        ({"name": "import", "text": FLUX_LORA}, [("name", "reserved_name")]),
        ({"name": "mine", "text": FLUX_LORA, "path": "/etc/passwd"}, [("path", "unknown_field")]),
        ({"name": "mine", "text": FLUX_LORA, "model_family": "nobody"}, [("model_family", "unknown_family")]),
    ],
)
def test_a_bad_request_is_refused_and_nothing_is_written(api: Api, body: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    status, problems = api.refused("POST", "/import", body)
    assert status == 422 and problems == expected
    assert not Environment.objects.exists() and not (api.home / "config" / "mine").exists()


def test_no_secret_of_a_file_is_stored_or_shown(api: Api) -> None:
    answer = imported(api, text=FLUX_LORA)
    files = [path for path in api.home.rglob("*") if path.is_file() and path.suffix != ".sqlite3"]
    assert not any(b"hf_very_secret" in path.read_bytes() for path in files) and "hf_very_secret" not in json.dumps(answer)


def images(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (640, 640), (number * 40, 90, 120)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}, [trigger]")


def test_an_imported_environment_validates_as_soon_as_its_folders_exist(api: Api) -> None:
    text = FLUX_LORA.replace("black-forest-labs/FLUX.1-dev", str(tiny_model("flux"))).replace('"adamw8bit"', '"adamw"')
    text = text.replace("quantize: true, ", "").replace("push_to_hub: true", "push_to_hub: false")
    imported(api, text=text)
    config = api.get("/mine")["config"]
    home = current_home()
    before = examine_run(resolve_run(home, config, {}), home)
    assert {problem.code for problem in before.errors} and {problem.option.split(".")[-1] for problem in before.errors} == {
        "instance_data_dir"
    }
    for name in ("watercolour", "photos"):
        images(api.home / "datasets" / name)
    after = examine_run(resolve_run(home, config, {}), home)
    assert [(problem.option, problem.message) for problem in after.errors] == []


@pytest.mark.parametrize("key", ["2001-01-01", "2001-01-01 10:00:00", "!!binary aGVsbG8="])
def test_a_key_that_json_does_not_have_is_refused(api: Api, key: str) -> None:
    text = f"model_family: flux\nmodel_type: lora\noptimizer_config: {{{key}: 1}}\n"
    answer = Client().post("/api/configs/import", {"name": "mine", "text": text}, content_type="application/json")
    assert answer.status_code == 422 and "a key is neither text nor a number" in answer.content.decode()
    assert not (api.home / "config/mine").exists()

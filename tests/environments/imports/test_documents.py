"""Foreign documents: their kinds, their limits, and the formats that are recognised."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from environments.imports.documents import ImportRefused, parse_document
from environments.imports.formats import FORMATS, recognise
from tests.environments.imports.conftest import Refused, Translate, reasons
from tests.environments.imports.test_ai_toolkit import FLUX_LORA
from tests.environments.imports.test_kohya import DATASETS, FLUX, LOKR
from tests.environments.imports.test_musubi import CLIPS, WAN
from tests.environments.imports.test_onetrainer import CONCEPTS, FULL

OWN: dict[str, Any] = {"--model_family": "sdxl", "--model_type": "lora", "--data_backend_config": "other/data.json"}
OWN |= {"--max_train_steps": 10, "--output_dir": "o"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (FLUX_LORA, "ai-toolkit"),
        (LOKR, "kohya"),
        (DATASETS, "kohya"),
        (FLUX, "kohya"),
        (WAN, "musubi"),
        (CLIPS, "musubi"),
        (json.dumps(FULL), "onetrainer"),
        (json.dumps(CONCEPTS), "onetrainer"),
        (json.dumps(OWN), "simpletuner"),
        (json.dumps({"_metadata": {"name": "x"}, "config": OWN}), "simpletuner"),
    ],
)
def test_a_format_is_recognised_by_its_content(text: str, name: str) -> None:
    assert recognise([parse_document(text, "text")]).name == name


@pytest.mark.parametrize("text", ["a: 1", "{}", "[section]\na = 1", '[{"colour": "red"}]', '{"config": 3}'])
def test_an_unknown_format_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ImportRefused) as caught:
        recognise([parse_document(text, "text")])
    problem = caught.value.problems[0]
    assert (problem.option, problem.code) == ("format", "unknown_format") and all(name in problem.expected for name in FORMATS)


@pytest.mark.parametrize(
    ("content", "name", "code"),
    [
        (b"\xff\xfe\x00", "a.yaml", "not_text"),
        ("a: \0", "a.yaml", "not_text"),
        ("a: [", "a.yaml", "unreadable_file"),
        ("a: &x 1", "a.yml", "unreadable_file"),
        ("a = ", "a.toml", "unreadable_file"),
        ("a = 1\na = 2", "a.toml", "unreadable_file"),
        ('{"a": 1, "a": 2}', "a.json", "unreadable_file"),
        ('{"a": NaN}', "a.json", "unreadable_file"),
        ("a: " + "[" * 200 + "]" * 200, "a.yaml", "unreadable_file"),
        ("a = " + "[" * 200 + "]" * 200, "a.toml", "unreadable_file"),
        ("a." * 60_000 + "b = 1", "a.toml", "unreadable_file"),
        ("[" + '"a" . ' * 20_000 + "b]", "a.toml", "unreadable_file"),
        ("a = {" + "b." * 50_000 + "c = 1}", "a.toml", "unreadable_file"),
        ("- " * 60_000 + "1", "a.yaml", "unreadable_file"),
        ("a: 1" + ":1" * 9_000, "a.yaml", "unreadable_file"),
        ("1" + ":1" * 9_000 + ": a", "a.yaml", "unreadable_file"),
        ("[" * 9000, "a.json", "unreadable_file"),
        ("just words", "a", "wrong_shape"),
        ("", "a", "wrong_shape"),
        ("a: 1\n" * 100_000, "a.yaml", "too_large"),
        ("a = 1\n" * 100_000, "a.toml", "too_large"),
        (" " * (1 << 21), "a.json", "too_large"),
        ('{"a": "\\ud800"}', "a.json", "unreadable_file"),
    ],
)
def test_a_broken_document_is_refused_quickly(content: str | bytes, name: str, code: str) -> None:
    started = time.monotonic()
    with pytest.raises(ImportRefused) as caught:
        parse_document(content, name)
    assert caught.value.problems[0].code == code and time.monotonic() - started < 20


def test_a_format_may_be_named_and_must_be_known(imported: Translate, refused: Refused) -> None:
    assert imported(FLUX_LORA, format_name="ai-toolkit").format == "ai-toolkit"
    assert refused(FLUX_LORA, format_name="invoke") == [("format", "unknown_format")]
    assert refused(FLUX_LORA, format_name="musubi") == [("model_family", "missing")]
    assert refused(json.dumps(CONCEPTS), format_name="kohya") == [("text0", "wrong_shape")]


def test_too_many_files_and_none_are_refused(refused: Refused) -> None:
    assert refused() == [("config", "missing")]
    assert refused(*[CLIPS] * 9) == [("config", "too_many")]


@pytest.mark.parametrize("name", ["", "..", "import", "a/b", "x" * 65])
def test_a_name_that_cannot_be_one_is_refused(refused: Refused, name: str) -> None:
    assert refused(FLUX_LORA, name=name)[0][0] == "name"


def test_an_own_configuration_keeps_its_options_and_loses_its_secrets(imported: Translate) -> None:
    given = {**OWN, "--webhook_config": [{"webhook_type": "raw", "callback_url": "https://example.org/***"}], "--colour": "red"}
    datasets = [
        {"id": "a", "instance_data_dir": "datasets/a", "resolution": 512},
        {"id": "b", "type": "aws", "aws_bucket_name": "b", "aws_access_key_id": "k", "aws_secret_access_key": "very-secret"},
        {"id": "t", "dataset_type": "text_embeds", "default": True},
    ]
    found = imported(json.dumps(given), json.dumps(datasets))
    assert found.planned.config["max_train_steps"] == 10 and "webhook_config" not in found.planned.config
    assert found.planned.config["data_backend_config"] == "mine/multidatabackend.json"
    assert {"--webhook_config", "--colour"} <= set(reasons(found))
    assert "very-secret" not in str(found)


def test_an_own_configuration_without_datasets_goes_on_naming_its_file(imported: Translate) -> None:
    found = imported(json.dumps(OWN))
    assert found.planned.config["data_backend_config"] == "other/data.json" and found.planned.datasets is None


def test_paths_outside_the_open_folders_are_left_out(imported: Translate) -> None:
    found = imported(FLUX_LORA.replace('training_folder: "output"', "training_folder: /etc"))
    assert found.planned.config["output_dir"] == "output/mine"
    assert reasons(found)["config.process[0].training_folder"].startswith("setting: ")


def test_control_characters_of_a_document_reach_no_terminal(imported: Translate) -> None:
    found = imported(json.dumps({**FULL, "cl\x1b[31moud": "a\x1b[31m\x07b"}))
    shown = [one for one in found.left_out if "oud" in one.name]
    assert shown and all(text.isprintable() for one in shown for text in (one.name, one.value))

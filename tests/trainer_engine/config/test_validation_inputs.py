"""``validation_input`` and the options around it: parsed, resolved and refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from environments.paths import Home
from environments.resolve.validation_paths import resolve_validation_inputs
from tests.helpers.checked_runs import checked
from tests.helpers.models import tiny_model
from trainer_engine.config.parse import check_options, parse_options
from trainer_engine.config.run_paths import read_places
from trainer_engine.config.validation_inputs import parse_validation_inputs
from trainer_engine.contract.errors import Level, Problem

KONTEXT: dict[str, Any] = {
    "model_family": "flux",
    "model_flavour": "kontext",
    "model_type": "lora",
    "output_dir": "/out",
    "data_backend_config": "d",
    "max_train_steps": 1,
}


def errors(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in problems if problem.level is Level.ERROR}


def problems_of(**options: Any) -> list[Problem]:
    return check_options({**KONTEXT, **options})[1]


def test_inputs_have_a_path_a_prompt_and_perhaps_a_name() -> None:
    text = json.dumps([{"path": "a.png", "prompt": " paint it "}, {"path": "/b.png", "prompt": "night", "shortname": "dark"}])
    inputs, problems = parse_validation_inputs(text)
    assert not problems
    assert [(one.path, one.prompt, one.shortname) for one in inputs] == [("a.png", "paint it", None), ("/b.png", "night", "dark")]
    assert inputs[1].place == "validation_input[1].path"
    assert parse_validation_inputs('{"path": "a.png", "prompt": "x"}')[0][0].path == "a.png"
    assert parse_validation_inputs(None) == parse_validation_inputs("") == ([], [])


@pytest.mark.parametrize(
    ("document", "option", "code"),
    [
        ("[", "validation_input", "not_json"),
        (["a.png"], "validation_input", "not_an_object"),
        ([], "validation_input", "empty"),
        ([{"path": "a.png"}], "validation_input[0].prompt", "missing"),
        ([{"prompt": "x"}], "validation_input[0].path", "missing"),
        ([{"path": ["a"], "prompt": "x"}], "validation_input[0].path", "not_text"),
        ([{"path": "a", "prompt": "x", "promt": "y"}], "validation_input[0].promt", "unknown_field"),
        ([{"path": "a", "prompt": "x", "shortname": "../up"}], "validation_input[0].shortname", "not_a_name"),
        ([{"path": "a", "prompt": "x"}] * 101, "validation_input", "too_many"),
    ],
)
def test_a_broken_input_is_refused_at_its_field(document: Any, option: str, code: str) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    assert errors(problems_of(validation_input=text)) == {(option, code)}


def test_all_broken_inputs_are_reported_at_once() -> None:
    found = errors(problems_of(validation_input=json.dumps([{"path": "a"}, {"prompt": "x", "key": 1}])))
    assert {option for option, _ in found} == {f"validation_input[{rest}" for rest in ("0].prompt", "1].path", "1].key")}


def test_networks_that_edit_nothing_refuse_inputs() -> None:
    asked = {"validation_input": '[{"path": "a", "prompt": "x"}]', "validation_using_datasets": True}
    problems = problems_of(model_flavour="dev", validation_stitch_input_location="left", **asked)
    assert errors(problems) == {("validation_input", "not_for_family"), ("validation_using_datasets", "not_for_family")}
    assert ("validation_stitch_input_location", "no_effect") in {(problem.option, problem.code) for problem in problems}
    assert not errors(problems_of(model_flavour="dev", validation_using_datasets=False)) and not errors(problems_of(**asked))


def test_stitched_images_are_not_scored() -> None:
    asked = {"validation_stitch_input_location": "top", "evaluation_type": "clip"}
    assert ("validation_stitch_input_location", "stitched_scores") in errors(problems_of(**asked))
    assert errors(problems_of(validation_stitch_input_location="middle")) == {("validation_stitch_input_location", "not_a_choice")}


def test_paths_of_inputs_become_absolute_and_missing_files_are_named(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.config.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(home.config / "room.png")
    text = json.dumps([{"path": "room.png", "prompt": "x", "shortname": "room"}, {"path": "gone.png", "prompt": "y"}])
    resolved, taken, problems = resolve_validation_inputs(text, home)
    assert json.loads(resolved)[0] == {"path": str(home.config / "room.png"), "prompt": "x", "shortname": "room"}
    assert set(taken) == {"validation_input[0].path"}
    assert [problem.option for problem in problems] == ["validation_input[1].path"]
    (home.config / "inputs.json").write_text(text)
    again, from_file, _ = resolve_validation_inputs("inputs.json", home)
    assert again == resolved and "validation_input" in from_file


def test_inputs_are_places_that_a_run_reads() -> None:
    options = parse_options({**KONTEXT, "validation_input": '[{"path": "/data/a.png", "prompt": "x"}]'})
    assert read_places(options, None)["validation_input[0].path"] == Path("/data/a.png")


def test_validate_opens_the_inputs_and_names_those_that_are_no_images(tmp_path: Path) -> None:
    images = tmp_path / "edits"
    images.mkdir()
    for number in range(2):
        Image.new("RGB", (96, 96), (60 * number, 9, 9)).save(images / f"{number}.png")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture")
    Image.new("RGB", (200, 100)).save(tmp_path / "fine.jpg")
    inputs = [{"path": str(tmp_path / name), "prompt": "x"} for name in ("fine.jpg", "torn.png", "notes.txt", "gone.png")]
    entries = [{"id": "edits", "instance_data_dir": str(images), "conditioning": {"type": "canny"}}]
    options = {**KONTEXT, "model": str(tiny_model("flux", flavour="kontext")), "validation_disable": False, "train_batch_size": 1}
    del options["output_dir"], options["data_backend_config"]
    report = checked(tmp_path, datasets=entries, **options, validation_input=json.dumps(inputs))
    found = {(problem.option, problem.code) for problem in report.errors}
    assert ("validation_input[3].path", "missing_file") in found or "validation_input[3].path" in {option for option, _ in found}
    report = checked(tmp_path, datasets=entries, **options, validation_input=json.dumps(inputs[:3]))
    named = {(problem.option, problem.code) for problem in report.errors}
    assert named == {("validation_input[1].path", "broken_image"), ("validation_input[2].path", "broken_image")}

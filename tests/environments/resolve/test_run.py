"""From an environment and a form to what a run is started with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.paths import Home
from environments.resolve.run import ResolvedRun, resolve_run
from trainer_engine.contract.errors import Level, Problem

ENVIRONMENT = {
    "model_family": "pixart_sigma",
    "model_type": "full",
    "output_dir": "output/demo",
    "data_backend_config": "demo/multidatabackend.json",
    "max_train_steps": 200,
    "num_train_epochs": 0,
}
DATASETS = [
    {"id": "images", "type": "local", "dataset_type": "image", "instance_data_dir": "datasets/demo", "cache_dir_vae": "cache/vae"},
    {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
]


@pytest.fixture
def place(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home", roots=(tmp_path / "data",))
    (home.root / "datasets" / "demo").mkdir(parents=True)
    (home.config / "demo").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    write(home, DATASETS)
    return home


def write(home: Home, document: Any) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    (home.config / "demo" / "multidatabackend.json").write_text(text)


def errors(resolved: ResolvedRun) -> list[tuple[str, str]]:
    return [(problem.option, problem.code) for problem in resolved.errors]


def notes(resolved: ResolvedRun) -> list[Problem]:
    return [problem for problem in resolved.problems if problem.level is Level.NOTE]


def test_paths_come_out_absolute_and_the_environment_stays_as_written(place: Home) -> None:
    run = resolve_run(place, ENVIRONMENT, {})
    assert run.errors == [] and run.options is not None
    assert run.options.run.output_dir == str(place.root / "output" / "demo")
    assert run.dataloader_path == place.config / "demo" / "multidatabackend.json"
    assert [entry["id"] for entry in run.datasets] == ["images", "texts"]
    assert run.datasets[0]["instance_data_dir"] == str(place.root / "datasets" / "demo")
    assert run.datasets[0]["cache_dir_vae"] == str(place.root / "cache" / "vae")
    assert run.datasets[1]["cache_dir"] == str(place.root / "cache" / "text")
    assert run.given == ENVIRONMENT
    assert run.dataloader is not None and run.dataloader.image_sets[0].id == "images"


def test_the_form_wins_over_the_environment_over_the_family_over_the_registry(place: Home) -> None:
    run = resolve_run(place, {**ENVIRONMENT, "seed": 1, "train_batch_size": 3}, {"--seed": "2", "__active_tab__": "model"})
    assert run.options is not None and run.spec is not None
    assert (run.options.run.seed, run.options.run.train_batch_size) == (2, 3)
    assert run.options.validation.validation_guidance == run.spec.defaults["validation_guidance"]
    assert run.options.validation.validation_num_inference_steps == 30
    assert run.given["seed"] == 2 and "validation_guidance" not in run.given


def test_a_form_mends_what_the_environment_has_wrong(place: Home) -> None:
    assert errors(resolve_run(place, {**ENVIRONMENT, "seed": "x"}, {})) == [("seed", "not_a_whole_number")]
    assert errors(resolve_run(place, {**ENVIRONMENT, "seed": "x"}, {"seed": 1})) == []
    both = {**ENVIRONMENT, "num_train_epochs": 3}
    assert errors(resolve_run(place, both, {})) == [("num_train_epochs", "two_lengths")]
    assert errors(resolve_run(place, both, {"--num_train_epochs": "0"})) == []


def test_an_alias_becomes_the_family(place: Home) -> None:
    run = resolve_run(place, {}, {**ENVIRONMENT, "model_family": "pixart"})
    assert run.given["model_family"] == "pixart_sigma" and run.values["model_family"] == "pixart_sigma"


def test_a_form_without_an_environment_must_be_complete(place: Home) -> None:
    assert resolve_run(place, {}, ENVIRONMENT).errors == []
    missing = {option for option, code in errors(resolve_run(place, {}, {})) if code == "missing"}
    assert missing == {"model_family", "model_type", "output_dir", "data_backend_config"}


def test_every_problem_of_options_and_datasets_is_reported_at_once(place: Home) -> None:
    write(place, [{**DATASETS[0], "instance_data_dir": "datasets/none", "crop_style": "left"}, {**DATASETS[1], "cache_dir": "/etc/x"}])
    run = resolve_run(place, {**ENVIRONMENT, "learning_rate": "fast", "output_dir": "/etc/out"}, {"nonsense": 1})
    assert set(errors(run)) >= {
        ("learning_rate", "not_a_number"),
        ("nonsense", "unknown_option"),
        ("output_dir", "outside_roots"),
        ("dataloader[0].instance_data_dir", "not_found"),
        ("dataloader[0].crop_style", "not_a_choice"),
        ("dataloader[1].cache_dir", "outside_roots"),
    }
    assert run.options is None


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ("{", ("data_backend_config", "invalid_json")),
        ("", ("data_backend_config", "invalid_json")),
        ("[" * 5000, ("data_backend_config", "invalid_json")),
        ("{}", ("dataloader", "not_a_list")),
        ("[]", ("dataloader", "empty_list")),
        ('["x"]', ("dataloader[0]", "not_an_object")),
    ],
)
def test_a_datasets_file_that_is_none_is_reported(place: Home, document: str, problem: tuple[str, str]) -> None:
    write(place, document)
    assert problem in errors(resolve_run(place, ENVIRONMENT, {})), errors(resolve_run(place, ENVIRONMENT, {}))


def test_a_missing_datasets_file_is_reported_with_the_places_looked_at(place: Home) -> None:
    run = resolve_run(place, {**ENVIRONMENT, "data_backend_config": "nothing.json"}, {})
    assert errors(run) == [("data_backend_config", "not_found")]
    assert str(place.config / "nothing.json") in run.errors[0].message


def test_the_datasets_file_is_found_with_and_without_config_before_it(place: Home) -> None:
    for text in ("demo/multidatabackend.json", "config/demo/multidatabackend.json", str(place.config / "demo/multidatabackend.json")):
        assert resolve_run(place, {**ENVIRONMENT, "data_backend_config": text}, {}).errors == []


def test_two_files_of_that_name_are_a_problem(place: Home) -> None:
    (place.root / "demo").mkdir()
    (place.root / "demo" / "multidatabackend.json").write_text("[]")
    assert errors(resolve_run(place, ENVIRONMENT, {})) == [("data_backend_config", "ambiguous_path")]


def test_which_file_was_taken_is_noted_where_it_lies_under_config(place: Home) -> None:
    taken = [note for note in notes(resolve_run(place, ENVIRONMENT, {})) if note.code == "path_taken"]
    assert [note.option for note in taken] == ["data_backend_config"]
    assert str(place.config / "demo" / "multidatabackend.json") in taken[0].message


def test_a_repository_stays_one_and_a_folder_of_its_name_wins(place: Home) -> None:
    values = {**ENVIRONMENT, "pretrained_model_name_or_path": "terminusresearch/pixart-900m-1024-ft-v0.6"}
    run = resolve_run(place, values, {})
    assert run.values["pretrained_model_name_or_path"] == values["pretrained_model_name_or_path"]
    folder = place.root / "terminusresearch" / "pixart-900m-1024-ft-v0.6"
    folder.mkdir(parents=True)
    assert resolve_run(place, values, {}).values["pretrained_model_name_or_path"] == str(folder)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("./weights", "not_found"),
        ("/data/nothing/here", "outside_roots"),
        ("../x", "outside_roots"),
        ("a/b/c", "not_found"),
        ("/etc", "outside_roots"),
    ],
)
def test_weights_by_path_must_lie_there(place: Home, text: str, code: str) -> None:
    run = resolve_run(place, {**ENVIRONMENT, "pretrained_model_name_or_path": text}, {})
    assert errors(run) == [("pretrained_model_name_or_path", code)]


def test_a_disabled_dataset_needs_no_folder(place: Home) -> None:
    write(place, [*DATASETS, {**DATASETS[0], "id": "later", "instance_data_dir": "datasets/none", "disabled": True}])
    assert resolve_run(place, ENVIRONMENT, {}).errors == []


def test_resolving_writes_no_file(place: Home) -> None:
    before = sorted(str(path) for path in place.root.rglob("*"))
    resolve_run(place, ENVIRONMENT, {"output_dir": "somewhere/new"})
    assert sorted(str(path) for path in place.root.rglob("*")) == before


def test_resolving_resolved_values_changes_nothing(place: Home) -> None:
    first = resolve_run(place, ENVIRONMENT, {"cache_dir": "cache"})
    again = resolve_run(place, first.values, {})
    assert again.errors == [] and again.values == first.values


def library(home: Home, content: bytes, name: str = "user_prompt_library.json") -> None:
    (home.config / "demo" / name).write_bytes(content)


def test_a_run_is_started_with_what_the_prompt_library_holds(place: Home) -> None:
    library(place, b'\xef\xbb\xbf{"night bench": "a bench"}\n')
    run = resolve_run(place, ENVIRONMENT, {"user_prompt_library": "demo/user_prompt_library.json"})
    assert run.errors == [] and run.options is not None
    assert run.given["user_prompt_library"] == "demo/user_prompt_library.json"
    assert run.values["user_prompt_library"] == run.options.validation.user_prompt_library == '{"night bench": "a bench"}'
    assert [note.option for note in notes(run)] == ["data_backend_config", "user_prompt_library"]
    again = resolve_run(place, ENVIRONMENT, {"user_prompt_library": {"a": "b"}})
    assert again.values["user_prompt_library"] == '{"a": "b"}'


def test_a_run_is_started_with_the_types_that_a_file_names(place: Home) -> None:
    library(place, b'{"text_encoder": {"weights_dtype": "int8"}}\n', "types.json")
    run = resolve_run(place, ENVIRONMENT, {"quantization_config": "demo/types.json"})
    assert run.errors == [] and run.options is not None
    assert run.given["quantization_config"] == "demo/types.json"
    assert run.values["quantization_config"] == '{"text_encoder": {"weights_dtype": "int8"}}'
    assert run.options.precision.text_encoder_1_precision == "int8-quanto"


@pytest.mark.parametrize(
    ("content", "option", "code"),
    [
        (b"{", "quantization_config", "invalid_json"),
        (b"[]", "quantization_config", "not_an_object"),
        (b'{"vae": {"weights_dtype": "int8"}}', "quantization_config.vae", "unknown_component"),
    ],
)
def test_a_file_that_names_no_types_is_reported(place: Home, content: bytes, option: str, code: str) -> None:
    library(place, content, "types.json")
    assert errors(resolve_run(place, ENVIRONMENT, {"quantization_config": "demo/types.json"})) == [(option, code)]
    assert errors(resolve_run(place, ENVIRONMENT, {"quantization_config": "demo/nowhere.json"})) == [("quantization_config", "not_found")]


@pytest.mark.parametrize(
    ("content", "option", "code"),
    [
        (b"{", "user_prompt_library", "invalid_json"),
        (b"a prompt", "user_prompt_library", "invalid_json"),
        (b"", "user_prompt_library", "invalid_json"),
        (b'"a prompt"', "user_prompt_library", "not_an_object"),
        (b'["a prompt"]', "user_prompt_library", "not_an_object"),
        (b"\xff\xfe{}", "user_prompt_library", "unreadable_file"),
        (b'{"a": NaN}', "user_prompt_library", "invalid_json"),
        (b'{"a": "\\ud800"}', "user_prompt_library", "invalid_json"),
        (b'{"a": 1}', "user_prompt_library.a", "wrong_type"),
        (b'{"../a": "x"}', "user_prompt_library", "unsafe_shortname"),
        (b'{"a": "x", "a": "y"}', "user_prompt_library", "invalid_json"),
        (b'{"a": "x", "A": "y"}', "user_prompt_library", "same_file_name"),
    ],
)
def test_a_prompt_library_that_cannot_be_used_is_reported(place: Home, content: bytes, option: str, code: str) -> None:
    library(place, content)
    run = resolve_run(place, ENVIRONMENT, {"user_prompt_library": "demo/user_prompt_library.json"})
    assert errors(run) == [(option, code)]
    assert run.options is None


@pytest.mark.parametrize(
    ("path", "code"),
    [("demo/none.json", "not_found"), ("/etc/passwd", "outside_roots"), ("demo", "not_a_file"), ("../../x.json", "outside_roots")],
)
def test_a_prompt_library_that_is_not_there_or_not_ours_is_reported(place: Home, path: str, code: str) -> None:
    assert errors(resolve_run(place, ENVIRONMENT, {"user_prompt_library": path})) == [("user_prompt_library", code)]

"""Libraries of prompts: what they may say, and what is reported of those that say something else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import check_options
from trainer_engine.config.prompt_library import LibraryPrompt, built_in_library, file_name, library_of, parse_prompt_library
from trainer_engine.contract.errors import InvalidOptions, Level, errors_in

GIVEN = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}


def problems_of(library: Any, **values: Any) -> list[tuple[str, str]]:
    """(option, code) of everything that is said about a run with this library."""
    text = library if isinstance(library, str) else json.dumps(library)
    _, problems = check_options({**GIVEN, "user_prompt_library": text, **values})
    return [(problem.option, problem.code) for problem in problems if problem.option.startswith("user_prompt_library")]


def test_entries_are_texts_or_objects_and_keep_their_order() -> None:
    prompts, problems = parse_prompt_library(
        json.dumps(
            {"night bench": "a bench", "b": {"caption": "two", "adapter_strength": 0.5}, "a": {"tags": "x, y"}, "c": {"prompt": "p"}}
        )
    )
    assert not problems
    assert prompts == [
        LibraryPrompt("night bench", "a bench"),
        LibraryPrompt("b", "two", 0.5),
        LibraryPrompt("a", "x, y"),
        LibraryPrompt("c", "p"),
    ]
    assert file_name("night bench") == "night_bench"


@pytest.mark.parametrize(
    ("library", "code"),
    [
        ("{", "invalid_json"),
        ('{"a": "b",}', "invalid_json"),
        ("[1, 2]", "not_an_object"),
        ("{}", "empty"),
        ({str(number): "x" for number in range(1001)}, "too_many"),
        ({"a": "  "}, "empty_prompt"),
        ({"a": {"prompt": ""}}, "empty_prompt"),
        ({"a": 3}, "wrong_type"),
        ({"a": None}, "wrong_type"),
        ({"a": ["x"]}, "wrong_type"),
        ({"a": {"prompt": 3}}, "wrong_type"),
        ({"a": {"prompt": {"x": 1}}}, "wrong_type"),
        ({"a": {}}, "missing_prompt"),
        ({"a": {"adapter_strength": 1}}, "missing_prompt"),
        ({"a": {"prompt": "x", "caption": "y"}}, "two_prompts"),
        ('{"a": {"prompt": "x", "prompt": "y"}}', "given_twice"),
        ({"a": {"prompt": "x", "strength": 1}}, "unknown_key"),
        ({"a": {"prompt": "x", "adapter_strength": True}}, "wrong_type"),
        ({"a": {"prompt": "x", "adapter_strength": "1"}}, "wrong_type"),
        ({"a": {"prompt": "x", "adapter_strength": 11}}, "out_of_range"),
        ('{"a": {"prompt": "x", "adapter_strength": NaN}}', "out_of_range"),
        ({"a": "half \ud800"}, "not_text"),
        ({"": "x"}, "unsafe_shortname"),
        ({" ": "x"}, "unsafe_shortname"),
        ({"../../etc/passwd": "x"}, "unsafe_shortname"),
        ({"a/b": "x"}, "unsafe_shortname"),
        ({"a\\b": "x"}, "unsafe_shortname"),
        ({"a\0b": "x"}, "unsafe_shortname"),
        ({".hidden": "x"}, "unsafe_shortname"),
        ({"what?": "x"}, "unsafe_shortname"),
        ({"猫" * 40: "x"}, "unsafe_shortname"),
        ({"\ud800": "x"}, "unsafe_shortname"),
        ('{"a": "x", "a": "y"}', "same_file_name"),
        ({"a b": "x", "a_b": "y"}, "same_file_name"),
        ({"Cat": "x", "cat": "y"}, "same_file_name"),
        ({"caf\u00e9": "x", "cafe\u0301": "y"}, "same_file_name"),
        ({"unconditional": "x"}, "same_file_name"),
    ],
)
def test_each_problem_of_a_library_is_reported_once(library: Any, code: str) -> None:
    found = problems_of(library)
    assert [said for _, said in found] == [code]
    text = library if isinstance(library, str) else json.dumps(library)
    if library != {"unconditional": "x"}:
        with pytest.raises(InvalidOptions):
            library_of(text)


def test_every_wrong_entry_is_reported_by_its_name() -> None:
    found = problems_of({"a": 3, "b": {"x": 1}, "c": "right", "d": ""})
    assert found == [
        ("user_prompt_library.a", "wrong_type"),
        ("user_prompt_library.b", "unknown_key"),
        ("user_prompt_library.b", "missing_prompt"),
        ("user_prompt_library.d", "empty_prompt"),
    ]


def test_shortnames_of_other_prompts_of_the_run_count_too() -> None:
    library = {"validation": "x", "fisherman": "y", "cat": "z", "cat_ema": "z", "dog_startup": "z", "dog": "z"}
    assert problems_of(library, validation_disable_unconditional=True) == []
    assert problems_of({"unconditional": "x"}, validation_disable_unconditional=True) == []
    reported = [("user_prompt_library", "same_file_name")]
    assert problems_of(library, validation_prompt="p") == reported
    assert problems_of(library, validation_prompt_library=True) == reported
    assert problems_of(library, use_ema=True) == reported
    assert problems_of(library, validation_on_startup=True) == reported


def test_a_key_without_effect_is_a_note() -> None:
    found = parse_prompt_library(json.dumps({"a": {"prompt": "x", "lyrics": "la"}}))[1]
    assert [(problem.code, problem.level) for problem in found] == [("no_effect", Level.NOTE)]
    library = {"a": {"prompt": "x", "adapter_strength": 0.5}}
    assert problems_of(library) == [("user_prompt_library", "no_effect")]
    assert problems_of(library, model_type="lora") == []


def test_an_object_may_be_sent_instead_of_a_text() -> None:
    options, problems = check_options({**GIVEN, "user_prompt_library": {"a": "x"}})
    assert options is not None and not errors_in(problems)
    assert library_of(options.validation.user_prompt_library) == [LibraryPrompt("a", "x")]
    assert library_of(None) == []


def test_the_libraries_that_come_along_are_right_and_are_the_choices() -> None:
    names = [name for name in REGISTRY["validation_prompt_library"].choices if name not in ("true", "false")]
    assert names == ["general", "people"]
    for name in names:
        assert len(built_in_library(name)) >= 5


@pytest.mark.parametrize(
    ("value", "expected"), [(True, "true"), ("true", "true"), (False, "false"), ("people", "people"), ("", "false"), (None, "false")]
)
def test_a_library_is_chosen_by_a_word_or_a_name(value: Any, expected: str) -> None:
    options, problems = check_options({**GIVEN, "validation_prompt_library": value})
    assert options is not None, problems
    assert options.validation.validation_prompt_library == expected
    _, problems = check_options({**GIVEN, "validation_prompt_library": "peoples"})
    assert [(problem.code, problem.hint) for problem in problems if problem.option == "validation_prompt_library"] == [
        ("not_a_choice", "did you mean people?")
    ]


@pytest.mark.parametrize("library", [{"golden key": "a golden key on a table"}, {"monkey": "monkeybusiness"}, {"key": "cat"}])
def test_prompts_that_are_called_like_keys_are_prompts(library: Any) -> None:
    assert problems_of(library) == []


@pytest.mark.parametrize(
    "library",
    [{"username": "me", "key": "0123456789"}, {"accessToken": "averysecretword"}, {"note": "-----BEGIN PRIVATE KEY-----\nabc"}],
)
def test_a_file_of_tokens_is_no_prompt_library(library: Any) -> None:
    (found,) = parse_prompt_library(json.dumps(library))[1]
    assert found.code == "not_prompts"
    assert not any(text in str(found.as_dict()) for text in library.values() if len(text) > 4)

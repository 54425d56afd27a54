"""The comment of results: which texts it may be, and which variables of the server it may contain."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import options_with
from trainer_engine.config.model_comment import comment_of, filled, is_for_comments, missing_variables
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.values import parse_value
from trainer_engine.config.parse import check_options
from trainer_engine.runtime.environment import comment_variables

FACTS = {"current_step": "40", "current_epoch": "2", "timestamp": "2026-01-02T03:04:05+00:00"}
LAB = "SIMPLETUNER_COMMENT_LAB"


@pytest.mark.parametrize(
    ("value", "comment"),
    [
        (None, ""),
        ("", ""),
        ("Trained on flowers.", "Trained on flowers."),
        (["one", "two"], "one\ntwo"),
        ('["one", "two"]', "one\ntwo"),
        ("[v2] flowers", "[v2] flowers"),
        ({"a": 1}, '{"a": 1}'),
        ("[]", ""),
    ],
)
def test_a_comment_is_a_text_or_lines(value: Any, comment: str) -> None:
    assert comment_of(parse_value(REGISTRY["modelspec_comment"], value)) == comment


@pytest.mark.parametrize("text", ["[1]", "[null]", '[["a"]]', '["a", {"b": 1}]'])
def test_a_list_of_anything_else_is_no_comment(text: str) -> None:
    with pytest.raises(ValueError, match="strings alone"):
        comment_of(text)


def test_placeholders_are_filled_once_and_other_braces_stay() -> None:
    comment = "{current_step} {current_epoch} {timestamp} {env:SIMPLETUNER_COMMENT_LAB} {loss} {} {{current_step}} {env}"
    text = filled(comment, FACTS, {LAB: "{current_step} {env:HOME}"})
    assert text == f"40 2 {FACTS['timestamp']} {{current_step}} {{env:HOME}} {{loss}} {{}} {{40}} {{env}}"


def test_a_variable_that_is_not_set_is_empty_and_named() -> None:
    comment = f"a {{env:{LAB}}} b {{env:SIMPLETUNER_COMMENT_X}}"
    assert filled(comment, FACTS, {LAB: "lab"}) == "a lab b "
    assert missing_variables(comment, {LAB: "lab"}) == ["SIMPLETUNER_COMMENT_X"]


def test_a_text_that_no_file_can_hold_is_cleaned() -> None:
    assert filled("a {env:SIMPLETUNER_COMMENT_LAB}", FACTS, {LAB: "\udcff"}) == "a ?"


SECRETS = {
    "SIMPLETUNER_SECRET_KEY": "key",
    "SIMPLETUNER_SECRETS": "{}",
    "HF_TOKEN": "token",
    "AWS_SECRET_ACCESS_KEY": "aws",
    "DATABASE_URL": "postgres://",
    "simpletuner_comment_x": "lower",
    "SIMPLETUNER_COMMENT": "bare",
}


def test_no_other_variable_of_the_server_is_open() -> None:
    assert comment_variables({**SECRETS, LAB: "lab"}) == {LAB: "lab"}


@given(st.text(max_size=40))
def test_no_name_that_a_comment_can_write_opens_another_variable(name: str) -> None:
    text = filled(f"{{env:{name}}}", FACTS, comment_variables({**SECRETS, name: "other", LAB: "lab"}))
    assert not any(secret in text for secret in ("key", "token", "aws", "postgres")) or name in text
    assert "other" not in text.replace(name, "") or is_for_comments(name)


def problems(comment: Any) -> list[tuple[str, str]]:
    given = {**options_with().as_values(), "modelspec_comment": comment}
    return [(problem.option, problem.code) for problem in check_options(given)[1] if problem.option == "modelspec_comment"]


@pytest.mark.parametrize("name", [*SECRETS, "", " SIMPLETUNER_COMMENT_X", "SIMPLETUNER_COMMENT_X Y", "PATH"])
def test_validate_refuses_every_variable_that_is_not_for_comments(name: str) -> None:
    assert problems(f"by {{env:{name}}}") == [("modelspec_comment", "closed_variable")]


@pytest.mark.parametrize(("comment", "code"), [("x" * 10_001, "too_long"), ([1], "not_text"), ([["a"]], "not_text")])
def test_validate_refuses_what_is_no_comment(comment: Any, code: str) -> None:
    assert problems(comment) == [("modelspec_comment", code)]


@pytest.mark.parametrize("comment", [f"by {{env:{LAB}}}", ["{timestamp}", "two"], "{loss}", "x" * 10_000])
def test_validate_accepts_a_comment(comment: Any) -> None:
    assert problems(comment) == []

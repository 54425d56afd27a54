"""Which names an environment can have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.create.names import RESERVED, is_name, name_problem


@pytest.mark.parametrize("name", ["a", "pixart-api-demo", "v0.6", "A_b-c.d", "9lives", "x" * 64, "activer", "my.examples"])
def test_ordinary_names_are_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("", "missing"),
        (".hidden", "invalid_name"),
        ("-rf", "invalid_name"),
        ("_x", "invalid_name"),
        ("..", "invalid_name"),
        ("a..b", "invalid_name"),
        ("a.", "invalid_name"),
        ("a/b", "invalid_name"),
        ("a\\b", "invalid_name"),
        ("a b", "invalid_name"),
        ("a\n", "invalid_name"),
        ("a\0", "invalid_name"),
        ("café", "invalid_name"),
        ("٣", "invalid_name"),
        ("x" * 65, "too_long"),
        ("x" * 100_000, "too_long"),
        ("Active", "reserved_name"),
        (None, "not_text"),
        (7, "not_text"),
        (["a"], "not_text"),
    ],
)
def test_names_that_break_folders_or_addresses_are_refused(name: object, code: str) -> None:
    problem = name_problem(name)
    assert problem is not None and problem.code == code
    assert len(problem.got) < 300


@pytest.mark.parametrize("word", sorted(RESERVED))
def test_words_of_the_api_are_reserved(word: str) -> None:
    assert name_problem(word) is not None


@given(st.text(max_size=80))
def test_a_name_is_one_path_component_that_stays_in_its_folder(name: str) -> None:
    if is_name(name):
        assert "/" not in name and name not in (".", "..") and not name.startswith(".") and name.isascii()

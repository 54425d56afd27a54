"""Options of older configurations, and values that ask for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.gone import GONE, OFF
from trainer_engine.config.options.registry import ALIASES, not_available
from trainer_engine.config.parse import normalise
from trainer_engine.contract.errors import Level

NOTHING: list[Any] = [False, "false", "False", "no", "off", "0", 0, None, "", "none", "null", [], {}]


def test_no_option_is_gone_and_there() -> None:
    assert not GONE.keys() & {*REGISTRY, *ALIASES, *not_available()}
    assert OFF.keys() <= not_available().keys()


@pytest.mark.parametrize("value", NOTHING)
@pytest.mark.parametrize("name", ["validation_torch_compile", "use_bitfit", "--use_gradient_checkpointing"])
def test_a_gone_option_that_asks_for_nothing_is_a_note(name: str, value: Any) -> None:
    typed, problems = normalise({name: value})
    assert typed == {}
    assert [(problem.level, problem.code) for problem in problems] == [(Level.NOTE, "gone")]


@pytest.mark.parametrize("name", GONE)
@pytest.mark.parametrize("value", [True, "true", "yes", 1, "something", ["x"]])
def test_a_gone_option_that_asks_for_something_is_named_as_gone(name: str, value: Any) -> None:
    (problem,) = normalise({name: value})[1]
    assert (problem.option, problem.code, problem.level) == (name, "gone", Level.ERROR)
    assert "did you mean" not in problem.hint and problem.hint.endswith("remove it")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("crepa_cutoff_step", value) for value in (0, "0", None, "")),
        *(("distillation_config", value) for value in ({}, [], "{}", "null")),
        ("gradient_precision", "unmodified"),
        ("trust_remote_code", 0),
    ],
)
def test_a_value_that_asks_for_nothing_is_accepted(name: str, value: Any) -> None:
    assert normalise({name: value}) == ({}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("crepa_cutoff_step", 2), ("trust_remote_code", "true"), ("distillation_config", "{1}")],
)
def test_a_value_that_asks_for_something_is_refused(name: str, value: Any) -> None:
    assert [(problem.option, problem.code) for problem in normalise({name: value})[1]] == [(name, "not_available")]

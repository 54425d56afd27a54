"""Options of older configurations, and values that ask for nothing."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.options import REGISTRY
from trainer_engine.config.options.gone import DEFAULT_NOW, GONE, RENAMED
from trainer_engine.config.options.registry import ALIASES, not_available
from trainer_engine.config.parse import normalise
from trainer_engine.contract.errors import Level

NOTHING: list[Any] = [False, "false", "False", "no", "off", "0", 0, None, "", "none", "null", [], {}]


def test_no_option_is_gone_and_there() -> None:
    assert not GONE.keys() & {*REGISTRY, *ALIASES, *not_available()}


@pytest.mark.parametrize("value", NOTHING)
@pytest.mark.parametrize("name", ["validation_torch_compile", "use_bitfit", "--use_8bit_adam"])
def test_a_gone_option_that_asks_for_nothing_is_a_note(name: str, value: Any) -> None:
    typed, problems = normalise({name: value})
    assert typed == {}
    assert [(problem.level, problem.code) for problem in problems] == [(Level.NOTE, "gone")]


@pytest.mark.parametrize("name", sorted(GONE.keys() - DEFAULT_NOW.keys()))
@pytest.mark.parametrize("value", [True, "true", "yes", 1, "something", ["x"]])
def test_a_gone_option_that_asks_for_something_is_named_as_gone(name: str, value: Any) -> None:
    (problem,) = normalise({name: value})[1]
    assert (problem.option, problem.code, problem.level) == (name, "gone", Level.ERROR)
    assert "did you mean" not in problem.hint and problem.hint.endswith("remove it")


@pytest.mark.parametrize(
    ("value", "level"),
    [*((value, Level.NOTE) for value in (True, "true", "1", None, "")), *((value, Level.ERROR) for value in (False, "false", 0, "what"))],
)
def test_a_gone_switch_that_is_on_by_default_asks_for_something_when_it_is_off(value: Any, level: Level) -> None:
    (problem,) = normalise({"allow_tf32": value})[1]
    assert (problem.code, problem.level, "disable_tf32" in problem.message + problem.hint) == ("gone", level, True)


def test_former_names_are_of_options_and_not_listed_as_gone() -> None:
    assert set(RENAMED.values()) <= REGISTRY.keys()
    assert not RENAMED.keys() & {*REGISTRY, *GONE, *not_available()}


@pytest.mark.parametrize(
    ("former", "name", "given", "value"),
    [
        ("use_gradient_checkpointing", "gradient_checkpointing", "true", True),
        ("--use_gradient_checkpointing", "gradient_checkpointing", False, False),
        ("flux_schedule_shift", "flow_schedule_shift", "3", 3.0),
        ("flux_schedule_auto_shift", "flow_schedule_auto_shift", True, True),
        ("flow_matching_sigmoid_scale", "flow_sigmoid_scale", 1.5, 1.5),
        ("flux_use_uniform_schedule", "flow_use_uniform_schedule", 1, True),
        ("flux-use-beta-schedule", "flow_use_beta_schedule", "yes", True),
        ("flux_beta_schedule_alpha", "flow_beta_schedule_alpha", 1, 1.0),
        ("flux_beta_schedule_beta", "flow_beta_schedule_beta", 4.0, 4.0),
        ("vae_path", "pretrained_vae_model_name_or_path", "madebyollin/sdxl-vae-fp16-fix", "madebyollin/sdxl-vae-fp16-fix"),
        ("lora_initialisation_style", "lora_init_type", "gaussian", "gaussian"),
    ],
)
def test_an_option_goes_on_working_under_its_former_name(former: str, name: str, given: Any, value: Any) -> None:
    assert normalise({former: given}) == ({name: value}, [])


def test_a_former_name_with_another_value_contradicts_the_name() -> None:
    (problem,) = normalise({"flux_schedule_shift": 1, "flow_schedule_shift": 3})[1]
    assert (problem.option, problem.code) == ("flow_schedule_shift", "conflicting_values")
    assert normalise({"flux_schedule_shift": "3", "flow_schedule_shift": 3.0}) == ({"flow_schedule_shift": 3.0}, [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("crepa_cutoff_step", value) for value in (0, "0", None, "")),
        *(("distillation_config", value) for value in ({}, [], "{}", "null")),
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

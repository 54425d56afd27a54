"""Skip-layer guidance: the blocks that are named, the steps without them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.config.parse import check_options
from trainer_engine.config.rules.skipped_layers import network_skip_problems
from trainer_engine.config.skipped_layers import OPTION, START, STOP, SkippedLayers, parse_layers
from trainer_engine.contract.errors import Level

WAN: dict[str, Any] = {
    "model_family": "wan",
    "model_type": "full",
    "data_backend_config": "d.json",
    "output_dir": "o",
    "max_train_steps": 9,
}


def reported(**changes: Any) -> list[tuple[str, str, Level]]:
    """The problems with what skip-layer guidance consists of."""
    problems = check_options({**WAN, **changes})[1]
    return [(problem.option, problem.code, problem.level) for problem in problems if problem.option.startswith(OPTION)]


@pytest.mark.parametrize(
    ("given", "layers"), [([9], (9,)), ("[9]", (9,)), ([10, 9, 9], (9, 10)), ("9", (9,)), (None, ()), ("", ()), ([], ()), ([0], (0,))]
)
def test_blocks_are_numbers_of_a_list(given: Any, layers: tuple[int, ...]) -> None:
    options, _ = check_options({**WAN, OPTION: given})
    assert options is not None
    assert parse_layers(options.validation.validation_guidance_skip_layers) == (layers, [])
    skipped = options.validation.skipped_layers
    assert (skipped.layers if skipped else ()) == layers


@pytest.mark.parametrize("given", ["[-1]", "[1.5]", "[true]", '["9"]', '{"layers": 9}', "[1001]", "[[9]]", "[9, null]"])
def test_what_is_no_number_of_a_block_is_refused(given: str) -> None:
    assert reported(**{OPTION: given}) == [(OPTION, "not_a_whole_number", Level.ERROR)]


def test_too_many_blocks_and_broken_json_are_refused() -> None:
    assert reported(**{OPTION: list(range(65))}) == [(OPTION, "too_many", Level.ERROR)]
    (problem,) = reported(**{OPTION: "[9"})
    assert problem[0] == OPTION and problem[2] is Level.ERROR


@pytest.mark.parametrize(
    ("start", "stop", "steps", "wanted"),
    [(0.01, 0.2, 20, [1, 2, 3]), (0.0, 1.0, 4, [1, 2, 3]), (0.5, 1.0, 4, [3]), (0.01, 0.2, 4, []), (0.25, 0.75, 8, [3, 4, 5])],
)
def test_the_steps_without_the_blocks_are_those_between_two_shares(start: float, stop: float, steps: int, wanted: list[int]) -> None:
    skipped = SkippedLayers((9,), start, stop)
    assert [step for step in range(steps) if skipped.applies_to(step, steps)] == wanted


def test_the_settings_of_the_quickstart_are_accepted() -> None:
    assert reported(**{OPTION: [9], START: 0.0, STOP: 1.0}) == []


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({START: 0.1}, [(START, "no_effect", Level.NOTE)]),
        ({STOP: "0.5"}, [(STOP, "no_effect", Level.NOTE)]),
        ({OPTION: [9], START: 0.5, STOP: 0.5}, [(START, "above_maximum", Level.ERROR)]),
        ({OPTION: [9], START: 1.5}, [(START, "out_of_range", Level.ERROR)]),
        ({OPTION: [9], "validation_guidance": 1.0}, [(OPTION, "no_effect", Level.NOTE)]),
        ({OPTION: [9], "model_family": "pixart_sigma"}, [(OPTION, "not_for_family", Level.ERROR)]),
    ],
)
def test_settings_without_sense_are_named(changes: dict[str, Any], wanted: list[Any]) -> None:
    assert reported(**changes) == wanted


@pytest.mark.parametrize(("layers", "codes"), [([0, 29], []), ([30], ["no_such_layer"]), ([1, 40, 50], ["no_such_layer"])])
def test_a_block_that_the_network_lacks_is_named_once(layers: list[int], codes: list[str]) -> None:
    names = [f"blocks.{number}.attn1.to_q.weight" for number in range(30)]
    options, spec = options_with(model_family="wan", **{OPTION: layers}), specs()["wan"]
    assert [problem.code for problem in network_skip_problems(options, spec, names)] == codes
    assert [problem.code for problem in network_skip_problems(options, spec, ["head.weight"])] == ["no_such_layer"]

"""Routes of tokens: their JSON, the blocks that they name, and the networks that have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with, tiny_model, tiny_pixart
from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.parse import check_options
from trainer_engine.config.routing import OPTION, Route, RoutingSpec, count_blocks, layer_problems, parse_routes
from trainer_engine.config.rules.routing import network_route_problems
from training.preflight.model_files import network_problems
from training.preflight.network import network_tensors

ROUTE = {"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}
PLACE = f"{OPTION}.routes[0]"
USUAL = {"model_type": "lora", "data_backend_config": "x.json", "output_dir": "o", "max_train_steps": 1}


@pytest.mark.parametrize("document", [{"routes": [ROUTE]}, [ROUTE], ROUTE])
def test_routes_are_read_from_the_forms_of_the_format(document: Any) -> None:
    routes, problems = parse_routes(json.dumps(document))
    assert problems == []
    assert routes == (Route(0.5, 2, -2, f"{OPTION}.routes[0]"),)
    assert list(routes[0].within(8)) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", '{"routes": []}'])
def test_an_empty_configuration_routes_nothing(text: str | None) -> None:
    assert parse_routes(text) == ((), [])


@pytest.mark.parametrize(
    ("document", "option", "code"),
    [
        ("{", OPTION, "not_json"),
        ([1], OPTION, "not_an_object"),
        ([ROUTE] * 17, OPTION, "too_many"),
        ({"routes": [ROUTE], "more": 1}, f"{OPTION}.more", "unknown_key"),
        ([{**ROUTE, "ratio": 1}], f"{OPTION}.routes[0].ratio", "unknown_key"),
        *(([{**ROUTE, "selection_ratio": one}], f"{PLACE}.selection_ratio", "out_of_range") for one in (1, -0.1, "0.5", None, True)),
        *(([{**ROUTE, "start_layer_idx": one}], f"{PLACE}.start_layer_idx", "not_a_whole_number") for one in (1.5, "1", None, True)),
        ([{**ROUTE, "end_layer_idx": 10**9}], f"{OPTION}.routes[0].end_layer_idx", "not_a_whole_number"),
    ],
)
def test_every_wrong_route_is_named(document: Any, option: str, code: str) -> None:
    routes, problems = parse_routes(document if isinstance(document, str) else json.dumps(document))
    assert routes == ()
    assert [(one.option, one.code) for one in problems] == [(option, code)]


def test_all_problems_of_the_routes_are_reported_at_once() -> None:
    _, problems = parse_routes(json.dumps([{}, {**ROUTE, "x": 1}]))
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("routes", "codes"),
    [
        ([(0, 3)], []),
        ([(-4, -1)], []),
        ([(0, 1), (2, 3)], []),
        ([(0, 4)], ["no_such_layer"]),
        ([(-5, 1)], ["no_such_layer"]),
        ([(2, 1)], ["ends_too_early"]),
        ([(0, 1), (1, 2)], ["overlapping_routes"]),
        ([(0, 9), (3, 0)], ["no_such_layer", "ends_too_early"]),
    ],
)
def test_routes_fit_the_blocks_of_a_network(routes: list[tuple[int, int]], codes: list[str]) -> None:
    chosen = [Route(0.5, start, end, f"{OPTION}.routes[{number}]") for number, (start, end) in enumerate(routes)]
    assert [one.code for one in layer_problems(chosen, 4)] == codes


def test_the_blocks_of_every_list_are_counted_and_nothing_else() -> None:
    spec = RoutingSpec(blocks=("transformer_blocks", "single_transformer_blocks"))
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0", "transformer_blocks.10.ff", "single_transformer_blocks.0.norm"]
    assert count_blocks([*names, "other.transformer_blocks.3.x", "transformer_blocks", "transformer_blocks.x"], spec) == 3


@pytest.mark.parametrize("family", sorted(name for name, spec in specs().items() if spec.routing is None))
def test_a_network_without_one_sequence_is_refused_with_the_reason(family: str) -> None:
    _, problems = check_options({**USUAL, "model_family": family, OPTION: {"routes": [ROUTE]}})
    (found,) = [one for one in problems if one.option == OPTION]
    assert (found.code, found.level.value) == ("no_routing", "error")
    assert "no sequence of blocks" in found.message


@pytest.mark.parametrize("family", sorted(name for name, spec in specs().items() if spec.routing))
def test_a_transformer_takes_routes(family: str) -> None:
    options, problems = check_options({**USUAL, "model_family": family, OPTION: {"routes": [ROUTE]}})
    assert options is not None
    assert [one for one in problems if one.option == OPTION] == []


@pytest.mark.parametrize(
    ("family", "blocks"), [("flux", 4), ("pixart_sigma", 2), ("wan", 2), ("krea2", 2), ("anima", 2), ("ernie", 2), ("longcat_image", 4)]
)
def test_the_preflight_compares_routes_with_the_network_on_this_machine(family: str, blocks: int, tmp_path: Path) -> None:
    model = str(tiny_pixart() if family == "pixart_sigma" else tiny_model(family))
    spec = find_spec(family)
    assert spec is not None
    for end, codes in ((blocks - 1, []), (blocks, ["no_such_layer"])):
        routes = json.dumps([{**ROUTE, "start_layer_idx": 0, "end_layer_idx": end}])
        options = options_with(model_family=family, pretrained_model_name_or_path=model, **{OPTION: routes})
        tensors = network_tensors(options.model, spec, tmp_path)
        assert tensors
        assert [one.code for one in network_problems(options, spec, tensors, tmp_path)] == codes
        assert list(network_problems(options, spec, None, tmp_path)) == []
    assert [one.code for one in network_route_problems(options, spec, ["something.else"])] == ["no_routing"]

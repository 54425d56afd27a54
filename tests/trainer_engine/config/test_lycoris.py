"""The LyCORIS configuration file: what it may contain, and every problem with it at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lycoris.wrapper import network_module_dict
from torch import Tensor, nn

from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.lycoris.algorithms import ALGORITHMS, BESIDE_WEIGHTS, READ_BY, unfit
from trainer_engine.config.lycoris.config_file import parse_lycoris
from trainer_engine.contract.errors import Level

SPEC = find_spec("pixart_sigma")
GOOD: dict[str, Any] = {
    "algo": "lokr",
    "multiplier": 0.5,
    "linear_dim": 4,
    "linear_alpha": 1,
    "apply_preset": {"target_module": ["FeedForward"]},
}


def codes(document: object) -> dict[str, str]:
    config, problems = parse_lycoris(document, SPEC)
    assert (config is None) == any(problem.level is Level.ERROR for problem in problems)
    return {problem.option.removeprefix("lycoris_config").lstrip("."): problem.code for problem in problems}


def test_every_algorithm_of_the_installed_library_is_known() -> None:
    assert set(ALGORITHMS) == set(network_module_dict)


def test_a_good_file_is_taken_as_it_stands() -> None:
    config, problems = parse_lycoris(GOOD, SPEC)
    assert config is not None
    assert problems == []
    assert (config.multiplier, config.linear_dim, config.preset["target_module"]) == (0.5, 4, ["FeedForward"])
    assert config.preset["name_algo_map"] == {}


@pytest.mark.parametrize("spec", specs().values(), ids=lambda spec: spec.name)
def test_the_starting_file_of_every_family_is_right(spec: Any) -> None:
    config, problems = parse_lycoris(spec.adapters.lycoris_start, spec)
    assert config is not None
    assert problems == []


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"algo": None}, {"algo": "missing"}),
        ({"algo": "lork"}, {"algo": "unknown_algorithm"}),
        ({"multiplier": None}, {"multiplier": "missing"}),
        ({"multiplier": "1"}, {"multiplier": "wrong_value"}),
        ({"linear_dim": None}, {"linear_dim": "missing"}),
        ({"linear_dim": None, "full_matrix": True}, {}),
        ({"linear_dim": 0.5}, {"linear_dim": "wrong_value"}),
        ({"linear_dim": True}, {"linear_dim": "wrong_value"}),
        ({"linear_alpha": None}, {"linear_alpha": "missing"}),
        ({"algo": "ia3", "linear_dim": None, "linear_alpha": None}, {}),
        ({"factor": 0}, {"factor": "wrong_value"}),
        ({"factor": -1}, {}),
        ({"factro": 4}, {"factro": "unknown_key"}),
        ({"dropout": 1.5}, {"dropout": "wrong_value"}),
        ({"tlora_min_rank": 2}, {"tlora_min_rank": "not_for_algorithm"}),
        ({"algo": "tlora", "tlora_min_rank": 2}, {}),
        ({"algo": "dylora", "linear_dim": 6}, {"linear_dim": "not_a_multiple"}),
        ({"linear_alpha": float("inf")}, {"linear_alpha": "wrong_value"}),
        ({"algo": "boft", "bypass_mode": True}, {"bypass_mode": "not_for_algorithm"}),
        ({"dora_wd": True, "bypass_mode": True}, {"weight_decompose": "contradiction"}),
        ({"algo": "lora", "factor": 4}, {"factor": "no_effect"}),
        ({"algo": "lora", "full_matrix": True, "linear_dim": None}, {"linear_dim": "missing", "full_matrix": "no_effect"}),
        (
            {"algo": "lora", "factor": 4, "apply_preset": {"module_algo_map": {"FeedForward": {"algo": "lokr"}}}},
            {},
        ),
        (
            {"apply_preset": {"name_algo_map": {"a": {"algo": "dylora", "dim": 6}, "b": {"algo": "ia3", "bypass_mode": True}}}},
            {
                "apply_preset.name_algo_map.a.linear_dim": "not_a_multiple",
                "apply_preset.name_algo_map.b.bypass_mode": "not_for_algorithm",
            },
        ),
        ({"apply_preset": {"target_name": ["*.ff"]}}, {"apply_preset.target_name": "bad_pattern"}),
        ({"apply_preset": {"target_name": ["*.ff"], "use_fnmatch": True}}, {}),
        ({"apply_preset": []}, {"apply_preset": "not_an_object"}),
        ({"apply_preset": {}}, {"apply_preset": "everything_adapted"}),
        ({"apply_preset": {"target_module": "FeedForward"}}, {"apply_preset.target_module": "not_a_list"}),
        ({"apply_preset": {"target_module": ["Attn"]}}, {"apply_preset.target_module": "unknown_class"}),
        ({"apply_preset": {"module_algo_map": {"Attn": {}}}}, {"apply_preset.module_algo_map": "unknown_class"}),
        ({"apply_preset": {"name_algo_map": {".*": {"algo": "x"}}}}, {"apply_preset.name_algo_map..*.algo": "unknown_algorithm"}),
        ({"apply_preset": {"name_algo_map": {".*": 3}}}, {"apply_preset.name_algo_map..*": "not_an_object"}),
        ({"apply_preset": {"text_encoder_target_module": ["X"]}}, {"apply_preset.text_encoder_target_module": "no_effect"}),
        (
            {"algo": "lork", "multiplier": -1, "factor": "x"},
            {"algo": "unknown_algorithm", "multiplier": "wrong_value", "factor": "wrong_value"},
        ),
    ],
)
def test_every_mistake_is_named(changes: dict[str, Any], wanted: dict[str, str]) -> None:
    assert codes({**GOOD, **changes}) == wanted


def test_a_document_that_is_not_an_object_is_refused() -> None:
    assert codes([GOOD]) == {"": "not_an_object"}


def test_an_unknown_class_is_an_error_that_lists_the_known_ones() -> None:
    _, (problem,) = parse_lycoris({**GOOD, "apply_preset": {"target_module": ["Attn"]}}, SPEC)
    assert problem.got == "Attn"
    assert "Attention" in problem.expected
    assert "FeedForward" in problem.expected


def test_a_name_of_older_libraries_means_the_classes_of_today() -> None:
    import dataclasses

    assert SPEC is not None
    spec = dataclasses.replace(SPEC, adapters=dataclasses.replace(SPEC.adapters, class_aliases={"Attn": ("Attention",)}))
    preset = {"target_module": ["Attn", "FeedForward"], "module_algo_map": {"Attn": {"linear_dim": 8, "factor": 2}}}
    config, problems = parse_lycoris({**GOOD, "apply_preset": preset}, spec)
    assert config is not None
    assert problems == []
    assert config.preset["target_module"] == ["Attention", "Attn", "FeedForward"]
    assert config.preset["module_algo_map"]["Attention"] == {"dim": 8, "factor": 2}
    assert config.document["apply_preset"] == preset


LIBRARY_NAMES = {"wd_on_output": "wd_on_out"}


@pytest.mark.parametrize("key", READ_BY)
def test_a_key_is_one_of_the_algorithms_that_read_it(key: str) -> None:
    name = LIBRARY_NAMES.get(key, key)
    taking = {algo for algo, module in network_module_dict.items() if name in inspect.signature(module.__init__).parameters}
    assert set(READ_BY[key]) <= taking


def answer(algo: str, *, beside: bool) -> Tensor:
    """Of an adapted layer to a question that is not contiguous."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 16)
    module = network_module_dict[algo]("adapter", layer, 0.7, 4, 1, 0.0, 0.0, 0.0, False, bypass_mode=beside, factor=4, block_size=2)
    module.apply_to()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(module.named_parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        module.eval()
        result: Tensor = layer(torch.randn(5, 2, 8, generator=generator).transpose(0, 1))
    return result


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_an_algorithm_means_the_same_beside_the_weight_or_is_known_not_to(algo: str) -> None:
    try:
        same = torch.allclose(answer(algo, beside=True), answer(algo, beside=False), atol=1e-5)
    except (ValueError, RuntimeError):
        same = False
    assert same == (algo in BESIDE_WEIGHTS)


@pytest.mark.parametrize(
    ("document", "how", "wanted"),
    [
        ({"algo": "lokr"}, {"quantised": True, "comfyui": True}, []),
        ({"algo": "full"}, {"quantised": True, "comfyui": True}, ["lycoris_config.algo"]),
        ({"algo": "glora"}, {"quantised": True, "comfyui": True}, ["lora_format"]),
        ({"algo": "loha", "dora_wd": True}, {"quantised": True, "comfyui": False}, ["lycoris_config.weight_decompose"]),
        ({"algo": "loha", "dora_wd": True}, {"quantised": False, "comfyui": True}, []),
        (
            {"algo": "lora", "apply_preset": {"module_algo_map": {"FeedForward": {"algo": "boft"}}}},
            {"quantised": True, "comfyui": False},
            ["lycoris_config.apply_preset.module_algo_map.FeedForward.algo"],
        ),
    ],
)
def test_a_lycoris_file_that_does_not_suit_the_run_is_refused(document: dict[str, Any], how: dict[str, bool], wanted: list[str]) -> None:
    find: Callable[..., Any] = unfit
    assert [problem.option for problem in find(document, **how)] == wanted

"""What is said of the algorithms is what the installed library does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lycoris.wrapper import network_module_dict
from torch import Tensor, nn

from trainer_engine.config.lycoris.algorithms import ALGORITHMS, BESIDE_WEIGHTS, READ_BY, unfit

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
def test_files_that_do_not_suit_the_run_are_told(document: dict[str, Any], how: dict[str, bool], wanted: list[str]) -> None:
    find: Callable[..., Any] = unfit
    assert [problem.option for problem in find(document, **how)] == wanted

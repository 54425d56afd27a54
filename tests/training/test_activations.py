"""The model of what a step keeps follows the network, the sequence and gradient checkpointing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from training.activations import KEPT, Tokens, kept_numbers

SHAPES = {
    "blocks.0.attn.to_q": (8, 8),
    "blocks.0.attn.add_q_proj": (8, 8),
    "blocks.0.norm1.linear": (48, 8),
    "single_blocks.0.proj_mlp": (32, 8),
    "proj_out": (4, 8),
}


def kept(tokens: Tokens, **values: Any) -> int:
    return kept_numbers(SHAPES, tokens, options_with(**{"gradient_checkpointing": False, **values}))


def test_each_layer_counts_the_tokens_that_it_sees() -> None:
    tokens = Tokens(image=10, prompt=4)
    wanted = 16 * 10 + 16 * 4 + 40 * 14
    assert kept(tokens) == pytest.approx(KEPT["full"] * wanted, abs=1)
    assert kept(tokens, model_type="lora") == pytest.approx(KEPT["standard"] * wanted, abs=1)


def test_twice_the_tokens_keep_twice_as_much() -> None:
    assert kept(Tokens(20, 8)) == pytest.approx(2 * kept(Tokens(10, 4)), abs=1)


def test_gradient_checkpointing_keeps_one_block_and_the_borders_of_the_others() -> None:
    tokens = Tokens(10, 4)
    assert kept(tokens, gradient_checkpointing=True) == int(2 * (8 + 8) * 14 + KEPT["full"] * 40 * 14)

"""The estimate of a transformer's activations follows its layers, the sequence and gradient checkpointing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from training.preflight.activations import KEPT, Tokens, kept_numbers

SHAPES = {
    "blocks.0.attn.to_q": (8, 8),
    "blocks.0.attn.add_q_proj": (8, 8),
    "blocks.0.norm1.linear": (48, 8),
    "single_blocks.0.proj_mlp": (32, 8),
    "proj_out": (4, 8),
}


PIXART, FLUX = specs()["pixart_sigma"], specs()["flux"]


def kept(tokens: Tokens, spec: FamilySpec = PIXART, **values: Any) -> int:
    return kept_numbers(SHAPES, tokens, options_with(**{"gradient_checkpointing": False, **values}), spec)


def test_the_estimate_counts_for_each_layer_the_tokens_that_it_sees() -> None:
    tokens = Tokens(image=10, prompt=4)
    wanted = 16 * 10 + 16 * 4 + 40 * 14
    assert kept(tokens) == pytest.approx(KEPT["full", False] * wanted, abs=3)
    assert kept(tokens, model_type="lora") == pytest.approx(KEPT["standard", False] * wanted, abs=3)
    quantised = kept(tokens, model_type="lora", base_model_precision="int8-quanto")
    assert quantised == pytest.approx(KEPT["standard", True] * wanted, abs=3)


def test_a_family_multiplies_the_estimate_by_its_share() -> None:
    assert kept(Tokens(100, 40), FLUX) == pytest.approx(FLUX.activation_share * kept(Tokens(100, 40)), abs=3)


def test_a_flavour_may_have_shorter_prompts() -> None:
    assert [FLUX.tokens_of(flavour) for flavour in (None, "dev", "schnell")] == [512, 512, 256]
    assert PIXART.tokens_of(None) == PIXART.prompts.token_limit


def test_twice_the_tokens_double_the_estimate() -> None:
    assert kept(Tokens(20, 8)) == pytest.approx(2 * kept(Tokens(10, 4)), abs=1)


def test_gradient_checkpointing_keeps_one_block_and_the_inputs_of_the_others() -> None:
    tokens = Tokens(10, 4)
    assert kept(tokens, gradient_checkpointing=True) == int(2 * (8 + 8) * 14 + KEPT["full", False] * 40 * 14)

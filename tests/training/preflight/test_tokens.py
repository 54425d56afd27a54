"""The tokens that each layer of a transformer computes, by the names that networks give their layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer_engine.config.families import specs
from training.preflight.tokens import Tokens, counts_prompts, crosses, in_sequence, passed, sees_tokens

APART = Tokens(image=100, prompt=7, joined=False)
IMAGE, PROMPT = "visual_transformer_blocks.3.", "text_transformer_blocks.0."


@pytest.mark.parametrize(
    ("layer", "tokens"),
    [
        (f"{IMAGE}self_attention.to_key", 100),
        (f"{IMAGE}cross_attention.to_query", 100),
        (f"{IMAGE}cross_attention.to_key", 7),
        (f"{IMAGE}cross_attention.to_value", 7),
        (f"{IMAGE}feed_forward.in_layer", 100),
        (f"{PROMPT}self_attention.to_key", 7),
        (f"{PROMPT}feed_forward.out_layer", 7),
        ("transformer_blocks.0.attn2.to_k", 7),
        ("transformer_blocks.0.attn2.to_q", 100),
    ],
)
def test_a_layer_computes_the_tokens_of_its_side(layer: str, tokens: int) -> None:
    assert sees_tokens(layer) and passed({layer: 3.0}, APART) == 3 * tokens


def test_blocks_of_the_prompt_have_a_sequence_of_their_own() -> None:
    assert in_sequence({f"{PROMPT}self_attention.to_key": 1.0}, APART) == 7
    assert in_sequence({f"{IMAGE}cross_attention.to_key": 1.0}, APART) == 100


def test_modulations_in_a_block_see_one_vector_of_a_sample() -> None:
    assert not sees_tokens(f"{IMAGE}visual_modulation.out_layer") and not sees_tokens(f"{PROMPT}text_modulation.out_layer")


def test_few_tokens_of_prompts_count_where_blocks_compute_them() -> None:
    spec = specs()["pixart_sigma"]
    few = replace(spec, prompts=replace(spec.prompts, joins_sequence=False, pads_to_limit=False))
    assert counts_prompts([f"{PROMPT}self_attention.to_key"], few)
    assert not counts_prompts(["transformer_blocks.0.attn2.to_k"], few)
    assert not crosses(f"{IMAGE}cross_attention.to_key", replace(APART, prompt=0))

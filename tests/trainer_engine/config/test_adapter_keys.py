"""Which layer a key belongs to, whoever wrote it."""

from __future__ import annotations

import pytest

from trainer_engine.config.adapters.keys import keys_by_module

LAYERS = ("blocks.0.attn.to_q", "blocks.0.attn.to_out.0", "blocks.0.ff.net.0.proj")


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("transformer.blocks.0.attn.to_q.lora_A.weight", "lora_A.weight"),
        ("diffusion_model.blocks.0.attn.to_q.alpha", "alpha"),
        ("base_model.model.blocks.0.attn.to_q.lora_B.weight", "lora_B.weight"),
        ("base_model.model.transformer.blocks.0.attn.to_q.lora_B.weight", "lora_B.weight"),
        ("blocks.0.attn.to_q.lora_A.default.weight", "lora_A.weight"),
        ("transformer.blocks.0.attn.to_q.lora.down.weight", "lora_down.weight"),
        ("blocks.0.attn.to_q.lora_magnitude_vector", "lora_magnitude_vector"),
        ("lycoris_blocks_0_attn_to_q.lokr_w1", "lokr_w1"),
        ("lycoris_blocks_0_attn_to_q.a1.weight", "a1.weight"),
        ("lora_transformer_blocks_0_attn_to_q.lora_up.weight", "lora_up.weight"),
        ("lora_unet_blocks_0_attn_to_q.dora_scale", "dora_scale"),
    ],
)
def test_every_spelling_of_a_key_names_its_layer(key: str, part: str) -> None:
    assert keys_by_module([key], LAYERS) == ({"blocks.0.attn.to_q": {part: key}}, [])


def test_what_could_be_two_layers_or_is_said_twice_is_none() -> None:
    assert keys_by_module(["lycoris_a_b.alpha"], ["a.b", "a_b"]) == ({}, ["lycoris_a_b.alpha"])
    modules, strangers = keys_by_module(["transformer.a.alpha", "diffusion_model.a.alpha"], ["a"])
    assert modules == {"a": {"alpha": "transformer.a.alpha"}} and strangers == ["diffusion_model.a.alpha"]
    assert keys_by_module(["text_encoder.a.alpha", "lora_te1_a.alpha", "", "alpha"], ["a"])[0] == {}

"""The network of Krea 2: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor

from tests.bench.networks import FEW_TOKENS, SHIFTED, WIDE_HEADS, WIDE_ROTARY, Network, cells_of, squares_of
from tests.trainer_engine.families.adapter_facts import SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.krea2.spec import SPEC


def call_krea2(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    embeds = batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=squares_of(noisy),
        encoder_hidden_states=embeds,
        timestep=batch.timesteps,
        position_ids=Krea2Pipeline.prepare_position_ids(embeds.shape[1], height // 2, width // 2, noisy.device),
        return_dict=False,
    )[0]
    return cells_of(output, noisy)


def output_of_krea2(network: Any, _: Tensor, draw: Draw) -> Tensor:
    tokens, states = draw(2, 6, 64), draw(2, 9, 3, 32)
    places = Krea2Pipeline.prepare_position_ids(9, 2, 3, "cpu")
    output: Tensor = network(tokens, states, torch.tensor(SIGMAS), places, return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Krea 2",
    make=Krea2Transformer2DModel,
    architecture={"num_layers": 28, "num_text_layers": 12, "text_hidden_dim": 2560},
    narrow={
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "intermediate_size": 48,
        "timestep_embed_dim": 16,
        "text_hidden_dim": 16,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 24,
    },
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={**WIDE_HEADS, **WIDE_ROTARY, "num_key_value_heads": 1, "intermediate_size": 344},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["num_text_layers"], architecture["text_hidden_dim"])},
    call=call_krea2,
    padded_to=1,
)
ADAPTERS = AdapterFacts(
    output=output_of_krea2,
    comfyui=r"""transformer\.(
        (transformer_blocks|text_fusion\.(layerwise|refiner)_blocks)\.\d+\.(attn\.(to_[qkv]|to_gate|to_out\.0)|ff\.(gate|up|down))
        |text_fusion\.projector|img_in|(txt_in|time_embed)\.linear_[12]|time_mod_proj|final_layer\.linear)""",
)

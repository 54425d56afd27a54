"""The network of Sana: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, TIMESTEPS, WIDE_HEADS, Network
from tests.trainer_engine.families.adapter_facts import TIMES, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.sana.spec import SPEC

TOKENS = SPEC.prompts.token_limit
SANA_10 = {"num_layers": 20, "qk_norm": None}
SANA_600M = {
    **SANA_10,
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}


def call_sana(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(
        noisy,
        encoder_hidden_states=batch.prompts["embeds"],
        encoder_attention_mask=batch.prompts["mask"],
        timestep=batch.timesteps * TIMESTEPS,
        return_dict=False,
    )[0]
    return output


def output_of_sana(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    mask = torch.arange(77).expand(2, -1) < 9
    output: Tensor = network(draw(2, 32, 4, 6), prompt, timestep=torch.tensor(TIMES), encoder_attention_mask=mask, return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Sana 1.5 4.8B",
    make=SanaTransformer2DModel,
    architecture={"num_layers": 60, "qk_norm": "rms_norm_across_heads", "caption_channels": 2304},
    others={
        "sana1.5-1.6b-1024": {"num_layers": 20},
        "sana1.0-1.6b-2048": {**SANA_10, "sample_size": 64, "interpolation_scale": 1.0},
        "sana1.0-1.6b-1024": SANA_10,
        "sana1.0-600m-1024": SANA_600M,
        "sana1.0-600m-512": {**SANA_600M, "sample_size": 16},
    },
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 16,
    },
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={
        **WIDE_HEADS,
        "num_attention_heads": 6,
        "num_cross_attention_heads": 6,
        "cross_attention_head_dim": 32,
        "cross_attention_dim": 192,
    },
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (TOKENS, architecture["caption_channels"]), "mask": (TOKENS,)},
    call=call_sana,
)
ADAPTERS = AdapterFacts(
    output=output_of_sana,
    # ComfyUI has no network of its own for Sana. These are the keys that diffusers reads, with which nodes for ComfyUI generate.
    comfyui=r"""transformer\.(
        transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.conv_(inverted|depth|point))
        |patch_embed\.proj|proj_out|caption_projection\.linear_[12]|time_embed\.(linear|emb\.timestep_embedder\.linear_[12]))""",
)

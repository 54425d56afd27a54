"""The network of AuraFlow: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AuraFlowTransformer2DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, Network
from tests.trainer_engine.families.adapter_facts import JOINED, SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.auraflow.spec import SPEC

TOKENS = SPEC.prompts.token_limit


def call_auraflow(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(noisy, batch.prompts["embeds"], batch.timesteps, return_dict=False)[0]
    return output


def output_of_auraflow(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    output: Tensor = network(draw(2, 4, 4, 6), prompt[:, :9], torch.tensor(SIGMAS), return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="AuraFlow",
    make=AuraFlowTransformer2DModel,
    architecture={"joint_attention_dim": 2048, "pos_embed_max_size": 9216},
    others=dict.fromkeys(("v0.2", "v0.1"), {"pos_embed_max_size": 4096}),
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "caption_projection_dim": 32,
        "joint_attention_dim": 16,
        "pos_embed_max_size": 256,
    },
    shallow={"num_mmdit_layers": 1, "num_single_dit_layers": 1},
    deeper={"num_mmdit_layers": 2, "num_single_dit_layers": 3},
    wider={
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "caption_projection_dim": 128,
        "num_mmdit_layers": 2,
        "num_single_dit_layers": 6,
    },
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (TOKENS, architecture["joint_attention_dim"])},
    call=call_auraflow,
)
ADAPTERS = AdapterFacts(
    output=output_of_auraflow,
    comfyui=rf"""transformer\.(
        joint_transformer_blocks\.\d+\.({JOINED}|norm1(_context)?\.linear|ff(_context)?\.(linear_[12]|out_projection))
        |single_transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0)|norm1\.linear|ff\.(linear_[12]|out_projection))
        |pos_embed\.proj|context_embedder|proj_out|norm_out\.linear|time_step_proj\.linear_[12])""",
)

"""The network of Stable Diffusion 3.5: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from torch.nn.functional import pad

from tests.bench.networks import FEW_TOKENS, SHIFTED, TIMESTEPS, WIDE_HEADS, Network
from tests.trainer_engine.families.adapter_facts import EMBEDDERS, JOINED, TIMES, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.sd3.spec import SPEC

TOKENS = SPEC.prompts.token_limit


def call_sd3(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prompts = batch.prompts
    joint = torch.cat([pad(prompts["clip"], (0, prompts["embeds"].shape[-1] - prompts["clip"].shape[-1])), prompts["embeds"]], dim=1)
    output: Tensor = network(noisy, joint, prompts["pooled"], batch.timesteps * TIMESTEPS, return_dict=False)[0]
    return output


def output_of_sd3(network: Any, _: Tensor, draw: Draw) -> Tensor:
    latents, joint = draw(2, 16, 8, 8), draw(2, 12, 80)
    output: Tensor = network(latents, joint, draw(2, 64), torch.tensor(TIMES), return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Stable Diffusion 3.5 medium",
    make=SD3Transformer2DModel,
    architecture={
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    others={
        "large": {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "dual_attention_layers": (),
        }
    },
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "caption_projection_dim": 16,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 8,
        "pos_embed_max_size": 96,
    },
    shallow={"num_layers": 2, "dual_attention_layers": (0,)},
    deeper={"num_layers": 4, "dual_attention_layers": (0, 1)},
    wider={**WIDE_HEADS, "caption_projection_dim": 128},
    schedule=SHIFTED,
    text=lambda architecture: {
        "embeds": (TOKENS, architecture["joint_attention_dim"]),
        "clip": (FEW_TOKENS, architecture["joint_attention_dim"] // 2),
        "pooled": (architecture["pooled_projection_dim"],),
    },
    call=call_sd3,
)
ADAPTERS = AdapterFacts(
    output=output_of_sd3,
    comfyui=rf"""transformer\.(
        transformer_blocks\.\d+\.({JOINED}|norm1(_context)?\.linear|ff(_context)?\.net\.(0\.proj|2))
        |pos_embed\.proj|context_embedder|proj_out|norm_out\.linear|{EMBEDDERS})""",
)

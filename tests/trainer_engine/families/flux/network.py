"""The network of Flux.1: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from tests.bench.gpu_flux import FLUX
from tests.bench.networks import SHIFTED, WIDE_HEADS, WIDE_ROTARY, Network, cells_of, places, squares_of
from tests.trainer_engine.families.adapter_facts import EMBEDDERS, JOINED, SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.flux.spec import SPEC

TOKENS = SPEC.prompts.token_limit


def call_flux(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    embeds = batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=squares_of(noisy),
        timestep=batch.timesteps,
        guidance=torch.ones_like(batch.timesteps),
        pooled_projections=batch.prompts["pooled"],
        encoder_hidden_states=embeds,
        txt_ids=noisy.new_zeros(embeds.shape[1], 3),
        img_ids=places(1, height // 2, width // 2).to(noisy),
        return_dict=False,
    )[0]
    return cells_of(output, noisy)


def output_of_flux(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    """Of any of its networks: with and without guidance, and with more channels."""
    tokens, pooled = draw(2, 6, network.config.in_channels), draw(2, network.config.pooled_projection_dim)
    output: Tensor = network(
        hidden_states=tokens,
        encoder_hidden_states=prompt[:, :9],
        pooled_projections=pooled,
        timestep=torch.tensor(SIGMAS),
        guidance=torch.ones(2) if network.config.guidance_embeds else None,
        txt_ids=torch.zeros(9, 3),
        img_ids=torch.arange(6)[:, None].expand(-1, 3).float(),
        return_dict=False,
    )[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Flux.1",
    make=FluxTransformer2DModel,
    architecture=FLUX,
    others=dict.fromkeys(("schnell", "libreflux"), {"guidance_embeds": False}),
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
    },
    shallow={"num_layers": 1, "num_single_layers": 1},
    deeper={"num_layers": 2, "num_single_layers": 3},
    wider={**WIDE_HEADS, **WIDE_ROTARY, "num_single_layers": 4},
    schedule=SHIFTED,
    text=lambda architecture: {
        "embeds": (TOKENS, architecture["joint_attention_dim"]),
        "pooled": (architecture["pooled_projection_dim"],),
        "mask": (TOKENS,),
    },
    call=call_flux,
)
ADAPTERS = AdapterFacts(
    output=output_of_flux,
    comfyui=rf"""transformer\.(
        transformer_blocks\.\d+\.({JOINED}|norm1(_context)?\.linear|ff(_context)?\.net\.(0\.proj|2))
        |single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out|norm\.linear)
        |x_embedder|context_embedder|proj_out|norm_out\.linear|{EMBEDDERS})""",
)

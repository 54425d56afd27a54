"""The network of Flux.1: its sizes and inputs, and how diffusers calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from tests.bench.gpu_flux import FLUX
from tests.bench.networks import SHIFTED, WIDE_HEADS, WIDE_ROTARY, Network, cells_of, places, squares_of
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

"""The network of Chroma: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel
from torch import Tensor

from tests.bench.networks import COPIES_A_NUMBER, SHIFTED, WIDE_HEADS, WIDE_ROTARY, Network, cells_of, places, squares_of
from tests.trainer_engine.families.adapter_facts import JOINED, SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.chroma.spec import SPEC

TOKENS = SPEC.prompts.token_limit


def call_chroma(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    tokens, embeds = squares_of(noisy), batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=tokens,
        timestep=batch.timesteps,
        encoder_hidden_states=embeds,
        txt_ids=noisy.new_zeros(embeds.shape[1], 3),
        img_ids=places(1, height // 2, width // 2).to(noisy),
        attention_mask=torch.cat([batch.prompts["mask"].to(noisy), noisy.new_ones(tokens.shape[:2])], dim=1),
        return_dict=False,
    )[0]
    return cells_of(output, noisy)


def output_of_chroma(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    tokens, mask = draw(2, 6, 64), torch.cat([torch.ones(1, 11), torch.zeros(1, 4)], dim=1).repeat(2, 1)
    given = {"txt_ids": torch.zeros(9, 3), "img_ids": torch.arange(18.0).view(6, 3), "attention_mask": mask, "return_dict": False}
    output: Tensor = network(tokens, prompt[:, :9], timestep=torch.tensor(SIGMAS), **given)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Chroma",
    make=ChromaTransformer2DModel,
    architecture={"num_layers": 19, "num_single_layers": 38, "joint_attention_dim": 4096},
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (4, 6, 6),
        "joint_attention_dim": 16,
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 24,
    },
    shallow={"num_layers": 1, "num_single_layers": 1, "approximator_layers": 1},
    deeper={"num_layers": 2, "num_single_layers": 3},
    wider={**WIDE_HEADS, **WIDE_ROTARY, "num_single_layers": 4},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (TOKENS, architecture["joint_attention_dim"]), "mask": (TOKENS,)},
    call=call_chroma,
    waits_for=frozenset({COPIES_A_NUMBER}),  # a number that it makes in Python
)
ADAPTERS = AdapterFacts(
    output=output_of_chroma,
    comfyui=rf"""transformer\.(
        transformer_blocks\.\d+\.({JOINED}|ff(_context)?\.net\.(0\.proj|2))
        |single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out)
        |x_embedder|context_embedder|proj_out)""",
    # In ComfyUI's network the small layers for the timestep have other names.
    not_loaded=r"distilled_guidance_layer\.",
)

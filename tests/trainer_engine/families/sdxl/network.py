"""The network of Stable Diffusion XL: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from tests.bench.networks import DENOISING, WIDE_UNET, Network
from tests.trainer_engine.families.adapter_facts import UNET_KEYS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.sdxl.spec import SPEC

TOKENS = SPEC.prompts.token_limit
TIME_IDS = 6
REFINER = {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "attention_head_dim": (6, 12, 24, 24),
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}


def call_sdxl(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prediction: Tensor = network(
        noisy,
        batch.timesteps,
        encoder_hidden_states=batch.prompts["embeds"],
        added_cond_kwargs={"text_embeds": batch.prompts["pooled"], "time_ids": batch.conditions["time_ids"]},
        return_dict=False,
    )[0]
    return prediction


def output_of_sdxl(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    added = {"text_embeds": draw(2, 32), "time_ids": torch.full((2, 6), 64.0)}
    given = {"encoder_hidden_states": prompt, "added_cond_kwargs": added, "return_dict": False}
    output: Tensor = network(draw(2, 4, 8, 8), torch.tensor([300, 700]), **given)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Stable Diffusion XL",
    make=UNet2DConditionModel,
    architecture={
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    others=dict.fromkeys(("refiner-1.0", "refiner-0.9"), REFINER),
    narrow={
        "block_out_channels": (8, 16, 32),
        "norm_num_groups": 4,
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 16,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    shallow={"layers_per_block": 1, "transformer_layers_per_block": (1, 1, 1)},
    deeper={"layers_per_block": 2},
    wider=WIDE_UNET,
    schedule=DENOISING,
    text=lambda architecture: {
        "embeds": (TOKENS, architecture["cross_attention_dim"]),
        "pooled": (architecture["projection_class_embeddings_input_dim"] - TIME_IDS * architecture["addition_time_embed_dim"],),
    },
    call=call_sdxl,
    has_time_ids=True,
)
ADAPTERS = AdapterFacts(output=output_of_sdxl, comfyui=UNET_KEYS, prompt_width=64)

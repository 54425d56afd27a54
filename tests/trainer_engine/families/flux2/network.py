"""The network of Flux.2: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, WIDE_HEADS, Network, places
from tests.trainer_engine.families.adapter_facts import JOINED, SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.flux2.spec import SPEC

TOKENS = SPEC.prompts.token_limit
KLEIN_4B = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7_680}


def call_flux2(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    embeds = batch.prompts["embeds"]
    output: Tensor = network(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=batch.timesteps,
        encoder_hidden_states=embeds,
        txt_ids=places(1, 1, 1, embeds.shape[1]).to(noisy.device),
        img_ids=places(1, height, width, 1).to(noisy.device),
        return_dict=False,
    )[0]
    return output.transpose(1, 2).reshape(len(noisy), -1, height, width)


def output_of_flux2(network: Any, _: Tensor, draw: Draw) -> Tensor:
    tokens, prompts = draw(2, 12, 128), draw(2, 8, 96)
    places = torch.arange(20)[:, None].expand(-1, 4)
    output: Tensor = network(tokens, prompts, timestep=torch.tensor(SIGMAS), txt_ids=places[:8], img_ids=places[8:], return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Flux.2 klein 9B",
    make=Flux2Transformer2DModel,
    architecture={
        "num_layers": 8,
        "num_single_layers": 24,
        "num_attention_heads": 32,
        "joint_attention_dim": 12_288,
        "guidance_embeds": False,
    },
    others={
        "dev": {
            "num_layers": 8,
            "num_single_layers": 48,
            "num_attention_heads": 48,
            "joint_attention_dim": 15_360,
            "guidance_embeds": True,
        },
        **dict.fromkeys(("klein-4b", "klein-4b-distilled"), KLEIN_4B),
    },
    narrow={"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4), "joint_attention_dim": 16},
    shallow={"num_layers": 1, "num_single_layers": 1},
    deeper={"num_layers": 2, "num_single_layers": 3},
    wider={**WIDE_HEADS, "axes_dims_rope": (8, 8, 8, 8), "num_single_layers": 4},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (TOKENS, architecture["joint_attention_dim"])},
    call=call_flux2,
)
ADAPTERS = AdapterFacts(
    output=output_of_flux2,
    comfyui=rf"""transformer\.(
        transformer_blocks\.\d+\.({JOINED}|ff(_context)?\.linear_(in|out))
        |single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)
        |x_embedder|context_embedder|proj_out|norm_out\.linear)
        |diffusion_model\.(
        (double_stream_modulation_(img|txt)|single_stream_modulation)\.lin|(time|guidance)_in\.(in|out)_layer)""",
)

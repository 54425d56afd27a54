"""The network of Qwen-Image: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from tests.bench.networks import FEW_TOKENS, SHIFTED, WIDE_HEADS, WIDE_ROTARY, Network, cells_of, squares_of
from tests.trainer_engine.families.adapter_facts import JOINED, SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.qwen_image.spec import SPEC


def call_qwen_image(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    count, _, height, width = noisy.shape
    output: Tensor = network(
        hidden_states=squares_of(noisy),
        timestep=batch.timesteps,
        encoder_hidden_states=batch.prompts["embeds"],
        img_shapes=[[(1, height // 2, width // 2)]] * count,
        return_dict=False,
    )[0]
    return cells_of(output, noisy)


def output_of_qwen_image(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    tokens, shapes = draw(2, 6, 64), [[(1, 2, 3)]] * 2
    output: Tensor = network(tokens, prompt[:, :9], timestep=torch.tensor(SIGMAS), img_shapes=shapes, return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Qwen-Image",
    make=QwenImageTransformer2DModel,
    architecture={"num_layers": 60, "joint_attention_dim": 3584},
    others={"edit-v3": {"zero_cond_t": True}},
    narrow={"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "joint_attention_dim": 16},
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={**WIDE_HEADS, **WIDE_ROTARY},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["joint_attention_dim"])},
    call=call_qwen_image,
    padded_to=1,
)
ADAPTERS = AdapterFacts(
    output=output_of_qwen_image,
    comfyui=rf"""diffusion_model\.(
        transformer_blocks\.\d+\.({JOINED}|(img|txt)_(mod\.1|mlp\.net\.(0\.proj|2)))
        |img_in|txt_in|proj_out|norm_out\.linear|time_text_embed\.timestep_embedder\.linear_[12])""",
)

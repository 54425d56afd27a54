"""The network of Qwen-Image 2.1: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import QwenImage21Transformer2DModel
from torch import Tensor

from tests.bench.networks import (
    COPIES_A_NUMBER,
    COUNTS_A_MASK,
    FEW_TOKENS,
    READS_A_NUMBER,
    SHIFTED,
    WIDE_HEADS,
    WIDE_ROTARY,
    Network,
)
from tests.trainer_engine.families.adapter_facts import SIGMAS, AdapterFacts, Draw
from tests.trainer_engine.families.qwen_image_21.models import pipeline_in
from trainer_engine.batches.batch import Batch
from trainer_engine.families.qwen_image_21.spec import SPEC


def call_qwen_image_21(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    """Each sample alone."""
    height, width = noisy.shape[-2:]
    found = []
    for row in range(len(noisy)):
        slots = batch.prompts[f"slots.{row}"].bool()
        output: Tensor = network(
            hidden_states=noisy[row : row + 1].flatten(2).transpose(1, 2),
            encoder_hidden_states=batch.prompts[f"embeds.{row}"][None],
            timestep=batch.timesteps[row : row + 1],
            img_shapes=[[(1, height, width)]],
            img_mask=torch.cat([slots, slots.new_ones(height * width // 4)])[None],
            return_dict=False,
        )[0]
        found.append(output[:, -height * width :].transpose(1, 2).reshape(1, -1, height, width))
    return torch.cat(found)


def output_of_qwen_image_21(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    tokens, slots = draw(1, 24, 64), torch.arange(15)[None] > 8
    given = {"timestep": torch.tensor(SIGMAS[:1]), "img_shapes": [[(1, 4, 6)]], "img_mask": slots, "return_dict": False}
    output: Tensor = network(tokens, prompt[:1, :9], **given)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Qwen-Image 2.1",
    make=QwenImage21Transformer2DModel,
    architecture={"num_layers": 32, "context_in_dim": 4096},
    narrow={"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), "context_in_dim": 16},
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={**WIDE_HEADS, **WIDE_ROTARY},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["context_in_dim"]), "slots": (FEW_TOKENS,)},
    call=call_qwen_image_21,
    is_ragged=True,
    reads_numbers=True,
    padded_to=1,
    waits_for=frozenset({READS_A_NUMBER, COPIES_A_NUMBER, COUNTS_A_MASK}),  # the places of images in a sequence
)
ADAPTERS = AdapterFacts(
    output=output_of_qwen_image_21,
    comfyui=r"""diffusion_model\.(
        transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0)
        |img_in|txt_in\.(in|out)_layer|modulation\.1|proj_out|norm_out\.linear|time_text_embed\.timestep_embedder\.linear_[12])""",
    # Two layers of the network are one in ComfyUI's.
    not_loaded=r"\.img_mlp\.",
    open_pipeline=pipeline_in,
)

"""The network of HiDream-I1: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import HiDreamImageTransformer2DModel
from torch import Tensor

from tests.bench.networks import COPIES_A_NUMBER, READS_A_NUMBER, SHIFTED, TIMESTEPS, WIDE_HEADS, WIDE_ROTARY, Network
from tests.trainer_engine.families.adapter_facts import TIMES, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.hidream.spec import SPEC

TOKENS = SPEC.prompts.token_limit
LLAMA_LAYERS = (*range(32), *[31] * 16)


def call_hidream(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    """In training mode the network returns the tokens of squares of 2 x 2 cells, otherwise an image."""
    count, channels, height, width = noisy.shape
    output: Tensor = network(
        noisy,
        batch.timesteps * TIMESTEPS,
        encoder_hidden_states_t5=batch.prompts["embeds"],
        encoder_hidden_states_llama3=batch.prompts["llama"].transpose(0, 1),
        pooled_embeds=batch.prompts["pooled"],
        return_dict=False,
    )[0]
    if output.shape == noisy.shape:
        return -output
    squares = output.view(count, channels, height // 2, width // 2, 2, 2)
    return -squares.transpose(3, 4).reshape(noisy.shape)


def output_of_hidream(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    states = {"encoder_hidden_states_t5": draw(2, 9, 24), "encoder_hidden_states_llama3": draw(3, 2, 9, 32), "pooled_embeds": prompt[:, 0]}
    output: Tensor = network(draw(2, 16, 8, 8), torch.tensor(TIMES), **states, return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="HiDream-I1",
    make=HiDreamImageTransformer2DModel,
    architecture={
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "caption_channels": (4096, 4096),
        "axes_dims_rope": (64, 32, 32),
        "llama_layers": LLAMA_LAYERS,
    },
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "axes_dims_rope": (8, 4, 4),
        "caption_channels": (16, 16),
        "text_emb_dim": 16,
    },
    shallow={"num_layers": 1, "num_single_layers": 1, "llama_layers": (0, 1)},
    deeper={"num_layers": 2, "num_single_layers": 3, "llama_layers": (0, 1, 2, 3, 3)},
    wider={**WIDE_HEADS, **WIDE_ROTARY, "num_single_layers": 4, "llama_layers": [0, 1, 2, 2, 2, 2, 2, 2]},
    schedule=SHIFTED,
    text=lambda architecture: {
        "embeds": (TOKENS, architecture["caption_channels"][0]),
        "llama": (len(set(architecture["llama_layers"])), TOKENS, architecture["caption_channels"][1]),
        "pooled": (architecture.get("text_emb_dim", 2048),),
    },
    call=call_hidream,
    reads_numbers=True,
    waits_for=frozenset({READS_A_NUMBER, COPIES_A_NUMBER}),  # the size of an image, and how often each expert is chosen
)
ADAPTERS = AdapterFacts(
    output=output_of_hidream,
    comfyui=r"""diffusion_model\.(
        double_stream_blocks\.\d+\.block\.(attn1\.to_([qkv]|out)(_t)?|adaLN_modulation\.1
        |(ff_i\.(shared_experts|experts\.\d+)|ff_t)\.w[123])
        |single_stream_blocks\.\d+\.block\.(attn1\.to_([qkv]|out)|adaLN_modulation\.1|ff_i\.(shared_experts|experts\.\d+)\.w[123])
        |caption_projection\.\d+\.linear|x_embedder\.proj|final_layer\.(linear|adaLN_modulation\.1)
        |t_embedder\.timestep_embedder\.linear_[12]|p_embedder\.pooled_embedder\.linear_[12])""",
)

"""The network of FLUX.3: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Flux3Transformer2DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, WIDE_HEADS, Network, places
from tests.trainer_engine.families.adapter_facts import SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.flux3.spec import SPEC

WINDOW_TOKENS = 480
"""Tokens of a long prompt in its window, which is a multiple of 80."""


def call_flux3(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    height, width = noisy.shape[-2:]
    embeds, scale = batch.prompts["embeds"], noisy.new_full((4,), 0.5)
    output: Tensor = network(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=batch.timesteps,
        encoder_hidden_states=embeds,
        txt_ids=places(1, 1, 1, embeds.shape[1]).to(noisy.device),
        img_ids=places(1, height, width, 1).to(noisy.device) * scale,
        return_dict=False,
    )[0]
    return output.transpose(1, 2).reshape(len(noisy), -1, height, width)


def output_of_flux3(network: Any, _: Tensor, draw: Draw) -> Tensor:
    tokens, prompts, beside = draw(2, 12, 128), draw(2, 8, 256), draw(2, 4, 128)
    places = torch.arange(24)[:, None].expand(-1, 4)
    given = {"timestep": torch.tensor(SIGMAS), "txt_ids": places[:8], "img_ids": places[8:20], "return_dict": False}
    output: Tensor = network(tokens, prompts, image_cond_hidden_states=beside, image_cond_ids=places[20:], **given)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="FLUX.3 klein",
    make=Flux3Transformer2DModel,
    architecture={"num_layers": 5, "num_single_layers": 28, "num_attention_heads": 24, "joint_attention_dim": 20_480},
    others={"klein-distilled": {"flow_map": True}},
    narrow={"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4), "joint_attention_dim": 16},
    shallow={"num_layers": 1, "num_single_layers": 1},
    deeper={"num_layers": 2, "num_single_layers": 3},
    wider={**WIDE_HEADS, "axes_dims_rope": (8, 8, 8, 8), "num_single_layers": 6, "num_layers": 2},
    schedule={**SHIFTED, "shift": 6.93},
    text=lambda architecture: {"embeds": (WINDOW_TOKENS, architecture["joint_attention_dim"])},
    call=call_flux3,
    padded_to=1,
)
ADAPTERS = AdapterFacts(
    output=output_of_flux3,
    # What diffusers reads behind this prefix; the layers outside of the blocks have its own names.
    comfyui=r"""diffusion_model\.(
        (content_mode_blocks\.(image|image_cond)|txt_mode_blocks|single_blocks)\.\d+\.([qkv]_proj|attn_out|mlp_(in|out))
        |(early|single)_stream_modulations\.(image|image_cond|txt)\.linear|x_embedders\.(image|image_cond)
        |context_embedder|proj_out|norm_out\.linear|(target_)?timestep_embedder\.linear_[12])""",
)

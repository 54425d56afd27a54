"""The network of FLUX.3: its sizes and inputs, and how diffusers calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import Flux3Transformer2DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, WIDE_HEADS, Network, places
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

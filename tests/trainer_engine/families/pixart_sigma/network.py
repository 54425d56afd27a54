"""The network of PixArt Sigma: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from tests.bench.gpu_pixart import NOISE, PIXART_900M
from tests.bench.networks import WIDE_HEADS, Network
from tests.trainer_engine.families.adapter_facts import AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.pixart_sigma.spec import SPEC

TOKENS = SPEC.prompts.token_limit
OF_600M = {"num_layers": 28}


def call_pixart(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(
        noisy,
        encoder_hidden_states=batch.prompts["embeds"],
        encoder_attention_mask=batch.prompts["mask"],
        timestep=batch.timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return output[:, : noisy.shape[1]]


def output_of_pixart_sigma(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    given = {"encoder_hidden_states": prompt, "timestep": torch.tensor([300, 700]), "return_dict": False}
    output: Tensor = network(draw(2, 4, 8, 8), added_cond_kwargs={"resolution": None, "aspect_ratio": None}, **given)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="PixArt Sigma 900M",
    make=PixArtTransformer2DModel,
    architecture=PIXART_900M,
    others={
        "600M-512": {**OF_600M, "sample_size": 64},
        "600M-1024": OF_600M,
        "600M-2048": {**OF_600M, "sample_size": 256},
    },
    narrow={"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16},
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={**WIDE_HEADS, "num_attention_heads": 6, "cross_attention_dim": 192, "num_layers": 6},
    schedule=NOISE,
    text=lambda architecture: {"embeds": (TOKENS, architecture["caption_channels"]), "mask": (TOKENS,)},
    call=call_pixart,
)
ADAPTERS = AdapterFacts(
    output=output_of_pixart_sigma,
    comfyui=r"""transformer\.(
        transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))
        |pos_embed\.proj|proj_out|caption_projection\.linear_[12]|adaln_single\.(linear|emb\.timestep_embedder\.linear_[12]))""",
    loads_in_diffusers=False,
)

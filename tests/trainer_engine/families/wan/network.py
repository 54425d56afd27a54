"""The network of Wan 2.1: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, TIMESTEPS, Network
from tests.trainer_engine.families.adapter_facts import TIMES, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.wan.spec import SPEC

TOKENS = SPEC.prompts.token_limit
WAN_14B = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13_824}
WAN_I2V = {**WAN_14B, "in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}


def call_wan(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prediction: Tensor = network(
        hidden_states=noisy, timestep=batch.timesteps * TIMESTEPS, encoder_hidden_states=batch.prompts["embeds"], return_dict=False
    )[0]
    return prediction


def output_of_wan(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    output: Tensor = network(draw(2, 16, 1, 4, 6), torch.tensor(TIMES), prompt, return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Wan 2.1 1.3B",
    make=WanTransformer3DModel,
    architecture={"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "text_dim": 4096},
    others={"t2v-480p-14b-2.1": WAN_14B, **dict.fromkeys(("i2v-14b-2.1", "i2v-14b-2.1-720p"), WAN_I2V)},
    narrow={"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "text_dim": 16, "freq_dim": 16},
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={"num_attention_heads": 8, "attention_head_dim": 24, "ffn_dim": 768, "num_layers": 4},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (TOKENS, architecture["text_dim"])},
    call=call_wan,
)
ADAPTERS = AdapterFacts(
    output=output_of_wan,
    comfyui=r"""diffusion_model\.(
        blocks\.\d+\.((self|cross)_attn\.[qkvo]|cross_attn\.[kv]_img|ffn\.[02])
        |patch_embedding|head\.head|(text|time)_embedding\.[02]|time_projection\.1|img_emb\.proj\.[13])""",
)

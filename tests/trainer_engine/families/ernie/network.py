"""The network of ERNIE-Image: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ErnieImageTransformer2DModel
from torch import Tensor

from tests.bench.networks import FEW_TOKENS, SHIFTED, TIMESTEPS, Network
from tests.trainer_engine.families.adapter_facts import TIMES, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.ernie.spec import SPEC


def call_ernie(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    embeds = batch.prompts["embeds"]
    lengths = torch.full((len(embeds),), embeds.shape[1], device=noisy.device)
    output: Tensor = network(noisy, batch.timesteps * TIMESTEPS, embeds, lengths, return_dict=False)[0]
    return output


def output_of_ernie(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    given = {"text_lens": torch.tensor([9, 7]), "return_dict": False}
    output: Tensor = network(draw(2, 128, 4, 6), torch.tensor(TIMES), prompt[:, :9], **given)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="ERNIE-Image",
    make=ErnieImageTransformer2DModel,
    architecture={"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12_288, "text_in_dim": 3072},
    narrow={"hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 48, "rope_axes_dim": (4, 6, 6), "text_in_dim": 16},
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={"hidden_size": 128, "num_attention_heads": 4, "rope_axes_dim": (8, 12, 12), "num_layers": 4, "ffn_hidden_size": 384},
    schedule={**SHIFTED, "shift": 4.0},
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["text_in_dim"])},
    call=call_ernie,
    padded_to=1,
    has_autocast=True,
)
ADAPTERS = AdapterFacts(
    output=output_of_ernie,
    comfyui=r"""diffusion_model\.(
        layers\.\d+\.(self_attention\.(to_[qkv]|to_out\.0)|mlp\.(gate_proj|up_proj|linear_fc2))
        |x_embedder\.proj|text_proj|time_embedding\.linear_[12]|adaLN_modulation\.1|final_norm\.linear|final_linear)""",
)

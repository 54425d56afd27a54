"""The network of Lumina-Image 2.0: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from tests.bench.networks import COPIES_A_NUMBER, FEW_TOKENS, SHIFTED, Network
from tests.trainer_engine.families.adapter_facts import SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.lumina2.spec import SPEC


def call_lumina2(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    embeds = torch.stack(list(batch.prompts.values()))
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=noisy.device)
    output: Tensor = network(noisy, 1 - batch.timesteps, embeds, mask, return_dict=False)[0]
    return -output


def output_of_lumina2(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    latents, mask = draw(2, 16, 4, 6), torch.arange(9)[None] < torch.tensor([[9], [7]])
    output: Tensor = network(latents, torch.tensor(SIGMAS), prompt[:, :9], mask, return_dict=False)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Lumina-Image 2.0",
    make=Lumina2Transformer2DModel,
    architecture={"cap_feat_dim": 2304},
    narrow={
        "hidden_size": 48,
        "num_attention_heads": 6,
        "num_kv_heads": 2,
        "multiple_of": 16,
        "axes_dim_rope": (4, 2, 2),
        "cap_feat_dim": 16,
    },
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={"hidden_size": 128, "num_attention_heads": 4, "axes_dim_rope": (8, 12, 12), "num_layers": 6},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["cap_feat_dim"])},
    call=call_lumina2,
    is_ragged=True,
    reads_numbers=True,
    padded_to=1,
    waits_for=frozenset({COPIES_A_NUMBER}),  # a number that it makes in Python
)
ADAPTERS = AdapterFacts(
    output=output_of_lumina2,
    comfyui=r"""diffusion_model\.(
        (layers|noise_refiner|context_refiner)\.\d+\.(attention\.(qkv|out)|feed_forward\.w[123]|adaLN_modulation\.1)
        |x_embedder|cap_embedder\.1|t_embedder\.mlp\.[02]|final_layer\.(linear|adaLN_modulation\.1))""",
)

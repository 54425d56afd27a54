"""The network of Lumina-Image 2.0: its sizes and inputs, and how diffusers calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Lumina2Transformer2DModel
from torch import Tensor

from tests.bench.networks import COPIES_A_NUMBER, FEW_TOKENS, SHIFTED, Network
from trainer_engine.batches.batch import Batch
from trainer_engine.families.lumina2.spec import SPEC


def call_lumina2(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    embeds = torch.stack(list(batch.prompts.values()))
    mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=noisy.device)
    output: Tensor = network(noisy, 1 - batch.timesteps, embeds, mask, return_dict=False)[0]
    return -output


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
    reads_masks=True,
    padded_to=1,
    waits_for=frozenset({COPIES_A_NUMBER}),  # a number that it makes in Python
)

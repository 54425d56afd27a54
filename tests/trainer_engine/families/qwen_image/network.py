"""The network of Qwen-Image: its sizes and inputs, and how diffusers calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from tests.bench.networks import FEW_TOKENS, SHIFTED, WIDE_HEADS, WIDE_ROTARY, Network, cells_of, squares_of
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

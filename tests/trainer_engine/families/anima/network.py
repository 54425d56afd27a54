"""The network of Anima: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from torch import Tensor

from tests.bench.networks import SHIFTED, WIDE_HEADS, Network
from tests.trainer_engine.families.adapter_facts import SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.anima.network import fit_for_images
from trainer_engine.families.anima.spec import SPEC

TOKENS = SPEC.prompts.token_limit


class CosmosOfImages(CosmosTransformer3DModel):  # type: ignore[misc]  # mypy does not read diffusers' types
    """The network of Anima, which computes without torchvision."""

    def __init__(self, **architecture: Any) -> None:
        super().__init__(**architecture)
        fit_for_images(self)


def call_anima(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    output: Tensor = network(
        hidden_states=noisy.unsqueeze(2),
        timestep=batch.timesteps,
        encoder_hidden_states=batch.prompts["embeds"],
        padding_mask=noisy.new_zeros(1, 1, *noisy.shape[-2:]),
        return_dict=False,
    )[0]
    return output.squeeze(2)


def output_of_anima(network: Any, prompt: Tensor, draw: Draw) -> Tensor:
    given = {"padding_mask": torch.zeros(1, 1, 32, 48), "return_dict": False}
    output: Tensor = network(draw(2, 16, 1, 4, 6), torch.tensor(SIGMAS), prompt, **given)[0]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Anima",
    make=CosmosOfImages,
    architecture={"num_attention_heads": 16, "text_embed_dim": 1024, "rope_scale": (1.0, 4.0, 4.0), "extra_pos_embed_type": None},
    narrow={"num_attention_heads": 2, "attention_head_dim": 18, "adaln_lora_dim": 8, "text_embed_dim": 16},
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={**WIDE_HEADS, "adaln_lora_dim": 32},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (TOKENS, architecture["text_embed_dim"])},
    call=call_anima,
)
ADAPTERS = AdapterFacts(
    output=output_of_anima,
    comfyui=r"""diffusion_model\.(
        blocks\.\d+\.((self|cross)_attn\.([qkv]|output)_proj|mlp\.layer[12]|adaln_modulation_(self_attn|cross_attn|mlp)\.[12])
        |x_embedder\.proj\.1|t_embedder\.1\.linear_[12]|final_layer\.(linear|adaln_modulation\.[12]))""",
)

"""The network of Ideogram 4: its sizes and inputs, how diffusers calls it, and what other programs read of adapters on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.bench.networks import FEW_TOKENS, SHIFTED, WIDE_HEADS, Network, places
from tests.trainer_engine.families.adapter_facts import SIGMAS, AdapterFacts, Draw
from trainer_engine.batches.batch import Batch
from trainer_engine.families.ideogram.network import ShortStates
from trainer_engine.families.ideogram.spec import SPEC


def call_ideogram(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    count, _, height, width = noisy.shape
    embeds = batch.prompts["embeds"]
    text = embeds.shape[1]
    tokens = noisy.flatten(2).transpose(1, 2)
    order, roles = places_and_roles(text, height, width, noisy.device)
    output: Tensor = network(
        hidden_states=tokens,
        timestep=1 - batch.timesteps,
        encoder_hidden_states=embeds,
        position_ids=order.expand(count, -1, -1),
        segment_ids=None,
        indicator=roles.expand(count, -1),
        return_dict=False,
    )[0]
    return -output[:, text:].transpose(1, 2).reshape(noisy.shape)


@cache
def places_and_roles(text: int, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions (text + height x width, 3) and roles of the tokens of a prompt and of an image."""
    words, image = torch.arange(text)[:, None].expand(-1, 3), places(1, height, width) + 65_536
    roles = torch.cat([torch.full((text,), 3), torch.full((height * width,), 2)])
    return torch.cat([words, image]).to(device), roles.to(device)


def output_of_ideogram(network: Any, _: Tensor, draw: Draw) -> Tensor:
    states, places = draw(2, 9, 416), torch.arange(45).view(15, 3).expand(2, -1, -1)
    roles = torch.tensor([3] * 9 + [2] * 6).expand(2, -1)
    given = {"position_ids": places, "segment_ids": torch.ones_like(roles), "indicator": roles, "return_dict": False}
    joined = torch.cat([states, torch.zeros(2, 6, 416)], dim=1)
    output: Tensor = network(draw(2, 15, 128), torch.tensor(SIGMAS), joined, **given)[0][:, 9:]
    return output


NETWORK = Network(
    family=SPEC.name,
    title="Ideogram 4",
    make=ShortStates,
    architecture={"num_layers": 34, "llm_features_dim": 53_248},
    narrow={
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "mrope_section": (4, 2, 2),
        "intermediate_size": 48,
        "adaln_dim": 16,
        "llm_features_dim": 16,
    },
    shallow={"num_layers": 1},
    deeper={"num_layers": 3},
    wider={**WIDE_HEADS, "mrope_section": (8, 4, 4), "intermediate_size": 344, "adaln_dim": 32},
    schedule=SHIFTED,
    text=lambda architecture: {"embeds": (FEW_TOKENS, architecture["llm_features_dim"])},
    call=call_ideogram,
    has_autocast=True,
    padded_to=1,
)
ADAPTERS = AdapterFacts(
    output=output_of_ideogram,
    comfyui=r"""diffusion_model\.(
        layers\.\d+\.(attention\.(qkv|o)|feed_forward\.w[123]|adaln_modulation)
        |input_proj|llm_cond_proj|adaln_proj|t_embedding\.mlp_(in|out)|final_layer\.(linear|adaln_modulation))""",
)

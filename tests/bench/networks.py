"""What is stated of a family's trained network, and what several families state alike.

The folder of tests of each family has a module ``network`` with its ``NETWORK``; ``tests.bench.published`` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from trainer_engine.batches.batch import Batch
from trainer_engine.config.families import specs
from trainer_engine.objectives.build import FLOW_MATCHING

Architecture = Mapping[str, Any]
Call = Callable[[Callable[..., Any], Tensor, Batch], Tensor]
"""(network, noisy latents, batch) -> prediction, by the network's own arguments."""
TIMESTEPS = 1000
FEW_TOKENS = 77
"""Tokens of a prompt, where a network takes any number."""
DENOISING: Mapping[str, Any] = MappingProxyType(
    {"num_train_timesteps": TIMESTEPS, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
)
SHIFTED: Mapping[str, Any] = MappingProxyType({"num_train_timesteps": TIMESTEPS, "shift": 3.0, "prediction_type": FLOW_MATCHING})
WIDE_HEADS: Mapping[str, Any] = MappingProxyType({"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 4})
WIDE_ROTARY: Mapping[str, Any] = MappingProxyType({"axes_dims_rope": (8, 12, 12)})
WIDE_UNET: Mapping[str, Any] = MappingProxyType({"block_out_channels": (64, 128)})
READS_A_NUMBER = "aten._local_scalar_dense.default"
"""The operator behind ``item()``."""
COPIES_A_NUMBER = "aten.lift_fresh.default"
"""The operator behind ``torch.tensor(...)``."""
COUNTS_A_MASK = "aten.nonzero.default"
"""The operator behind a mask as an index."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The trained network of a family: architecture, inputs, and how diffusers alone calls it."""

    family: str
    title: str
    make: type[nn.Module]
    architecture: Architecture
    """That of the published weights of the default flavour, as ``config.json`` of its repository states it.

    What a repository leaves out is the default of the class in diffusers.
    """
    others: Mapping[str, Architecture] = field(default_factory=dict)
    """Flavour -> what differs from the default flavour's architecture."""
    narrow: Architecture
    """Changes that keep the depth, at a width where operators cost more than their arithmetic."""
    shallow: Architecture
    """Changes of the narrow network that leave as few blocks as possible."""
    deeper: Architecture
    """Changes of the shallow network that give it more blocks of each kind."""
    wider: Architecture
    """Changes of the micro model that make it wide enough that layers, not vectors of one sample, hold the memory of a step."""
    schedule: Mapping[str, Any]
    text: Callable[[Architecture], Mapping[str, tuple[int, ...]]]
    """Shape of each tensor of a prompt, without the batch."""
    call: Call
    has_time_ids: bool = False
    is_ragged: bool = False
    """Whether a batch has a tensor for each prompt."""
    padded_to: int | None = None
    """The multiple that prompts are padded to, if the sequence is as long as the caption; None if it is as long as the longest one."""
    reads_numbers: bool = False
    """Whether a pass reads numbers of its inputs, which tensors without memory have none of: of masks, or which expert a token is for."""
    waits_for: frozenset[str] = frozenset()
    """Operators of its pass in diffusers that wait for the device or copy numbers to it: ``READS_A_NUMBER`` and those beside it."""
    has_autocast: bool = False
    """Whether a pass enters a context of autocast, which the meta device has none of."""

    @property
    def is_flow(self) -> bool:
        return self.schedule.get("prediction_type") == FLOW_MATCHING

    def latent_shape(self, edge: int) -> tuple[int, ...]:
        """(C, ...) of a square image."""
        spec = specs()[self.family]
        frames = (1,) if spec.sampling.clips else ()
        return (spec.latents.channels, *frames, edge, edge)


def call_unet(network: Callable[..., Any], noisy: Tensor, batch: Batch) -> Tensor:
    prediction: Tensor = network(noisy, batch.timesteps, encoder_hidden_states=batch.prompts["embeds"], return_dict=False)[0]
    return prediction


def squares_of(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 w/2, 4 C): a token for each 2 x 2 cells."""
    count, channels, height, width = latents.shape
    squares = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(count, -1, 4 * channels)


def cells_of(tokens: Tensor, latents: Tensor) -> Tensor:
    """The inverse of ``squares_of``, in the shape of ``latents``."""
    count, channels, height, width = latents.shape
    return tokens.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(latents.shape)


@cache
def places(*sizes: int) -> Tensor:
    """(product of the sizes, number of sizes): the places of a grid, the last axis first."""
    return torch.cartesian_prod(*map(torch.arange, sizes))


def make_network(network: Network, architecture: Architecture, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights, the same ones each time, made on the device in their own type: float32 first would need twice the memory."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            made: nn.Module = network.make(**architecture)
            return made
        finally:
            torch.set_default_dtype(before)


def parameters_of(network: Network) -> int:
    """Parameters of the published weights."""
    made = make_network(network, network.architecture, torch.device("meta"), torch.bfloat16)
    return sum(parameter.numel() for parameter in made.parameters())

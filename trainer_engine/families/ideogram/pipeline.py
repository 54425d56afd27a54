"""The pipeline of diffusers with embeddings in place of its text encoder, and with or without its second network."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import Ideogram4Pipeline
from torch import Tensor, nn

from trainer_engine.families.ideogram.sequence import layout, masked, velocity


class EmbeddedPipeline(Ideogram4Pipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Takes the states of the prompt from ``embeds``."""

    embeds: Tensor
    """(T, D) of the prompt."""

    def encode_prompt(self, prompt: Any, grid_h: int, grid_w: int, max_sequence_length: int, device: torch.device) -> Any:
        """As the pipeline does, for one prompt of ``max_sequence_length`` tokens, without zeros for the image (``ShortStates``)."""
        places = layout(len(self.embeds), grid_h, grid_w, device)
        return self.embeds[None].to(device, torch.float32), places["position_ids"], places["segment_ids"], places["indicator"]


class Unguided(nn.Module):
    """The trained network as the second one of the pipeline: its prediction for the negative prompt."""

    embeds: Tensor
    """(T, D) of the negative prompt."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def dtype(self) -> torch.dtype:
        return cast("torch.dtype", self.network.dtype)

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.network.device)

    def forward(self, hidden_states: Tensor, timestep: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor]:
        """(B, N, C) of the image alone -> the same of the velocity."""
        embeds = self.embeds[None].to(hidden_states)
        height, width = (int(last) + 1 for last in (position_ids[0, -1] - position_ids[0, 0])[1:])
        places = masked(layout(len(self.embeds), height, width, position_ids.device), None, 1)
        return (velocity(self.network, hidden_states, embeds, timestep, places),)

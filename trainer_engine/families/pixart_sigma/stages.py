"""Two transformers of PixArt Sigma that share the noise schedule, as one network for the pipeline of validation images."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class SharedSchedule(nn.Module):
    """Asks the first transformer from the timestep ``border`` on, and the second below it."""

    def __init__(self, first: nn.Module, second: nn.Module, border: int) -> None:
        super().__init__()
        self.first, self.second, self.border = first, second, border

    @property
    def config(self) -> Any:
        return self.first.config

    @property
    def dtype(self) -> torch.dtype:
        return cast("torch.dtype", self.first.dtype)

    @property
    def device(self) -> torch.device:
        return cast("torch.device", self.first.device)

    @property
    def transformers(self) -> tuple[nn.Module, nn.Module]:
        return self.first, self.second

    def forward(self, hidden_states: Tensor, *, timestep: Tensor, **conditions: Any) -> Any:
        """(B, C, h, w), all at one timestep of ``timestep`` (B,), as the transformer's own forward pass."""
        network = self.first if timestep[0].item() >= self.border else self.second
        return network(hidden_states, timestep=timestep, **conditions)

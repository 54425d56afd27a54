"""What the network learns: how data becomes noise, what is predicted, and how far off it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Objective(ABC):
    """One parameterisation. Pure: no option, no model and no global random state inside.

    Shapes: data, noise and x_t are (B, C, h, w), t is (B,). Results of ``add_noise`` and ``target`` are float32.
    """

    @abstractmethod
    def sample_timesteps(self, generators: Sequence[torch.Generator], latent_shape: Sequence[int]) -> Tensor:
        """One t a sample from the sample's own generator, (B,) on the CPU: int64 indices of a discrete schedule, or float32 in [0, 1].

        ``latent_shape`` (C, h, w): schedules may depend on the size of the image.
        """

    @abstractmethod
    def add_noise(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, on the device of ``data``."""

    @abstractmethod
    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What a perfect network predicts from x_t."""

    def loss(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Mean squared error of each sample, (B,) float32; a batch's loss is the mean of these."""
        error = prediction.float() - target.float()
        return error.square().flatten(1).mean(dim=1)

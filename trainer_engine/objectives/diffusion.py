"""Denoising diffusion on a discrete, variance-preserving schedule (Ho et al., 2020; Salimans and Ho, 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer_engine.objectives.base import Objective


class Diffusion(Objective):
    """x_t = alpha_t x + sigma_t eps, with alpha_t^2 + sigma_t^2 = 1 (Ho et al., 2020, eq. 4).

    ``alphas_cumprod`` (T,): alpha_t^2 for t = 0 .. T-1, float.
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        squared = alphas_cumprod.double()
        self.alphas = squared.sqrt().float()
        self.sigmas = (1 - squared).sqrt().float()

    def sample_timesteps(self, generators: Sequence[torch.Generator], latent_shape: Sequence[int]) -> Tensor:
        """Uniform over 0 .. T-1."""
        return torch.cat([torch.randint(len(self.alphas), (1,), generator=generator) for generator in generators])

    def add_noise(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(t, data)
        return alpha * data.float() + sigma * noise.float()

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), each (B, 1, 1, 1) on the device of ``like``."""
        if self.alphas.device != like.device:
            # Once, so that no pass waits for the device.
            self.alphas, self.sigmas = self.alphas.to(like.device), self.sigmas.to(like.device)
        index, shape = t.to(like.device), (-1,) + (1,) * (like.dim() - 1)
        return self.alphas[index].view(shape), self.sigmas[index].view(shape)


class Epsilon(Diffusion):
    """The network learns the noise (Ho et al., 2020, eq. 14)."""

    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise.float()


class VPrediction(Diffusion):
    """The network learns the velocity v = alpha_t eps - sigma_t x (Salimans and Ho, 2022, appendix D)."""

    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(t, data)
        return alpha * noise.float() - sigma * data.float()

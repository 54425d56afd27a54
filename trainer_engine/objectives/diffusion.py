"""Denoising diffusion on a discrete, variance-preserving schedule (Ho et al., 2020; Salimans and Ho, 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer_engine.objectives.base import Objective


@dataclass(frozen=True)
class MinSnr:
    """Weights that bound the one of the data's error at ``gamma`` (Hang et al., 2023, eq. 8 and 9; soft: Crowson et al., 2024)."""

    gamma: float
    is_soft: bool = False
    factor: float = 1.0
    sigma_data: float = 1.0
    """Standard deviation of the data, by which the soft form measures the signal: its SNR is sigma_data^2 alpha_t^2 / sigma_t^2."""

    def of(self, noise_to_signal: Tensor, offset: float) -> Tensor:
        """factor min(SNR, gamma) / (SNR + offset), (B,); soft: SNR gamma / (SNR + gamma) instead of the minimum.

        Fraction and divisor are over the SNR, so that pure noise (SNR 0) gets the limit instead of 0 / 0.
        """
        inverse = noise_to_signal.square()
        signal = inverse.reciprocal() * self.sigma_data**2
        bounded = self.gamma * self.sigma_data**2 / (signal + self.gamma) if self.is_soft else (self.gamma * inverse).clamp_max(1)
        weight = bounded / (1 + offset * inverse) if offset else bounded
        return weight * self.factor if self.factor != 1 else weight


@dataclass(frozen=True)
class TimestepBias:
    """Samples the timesteps ``begin`` to ``end`` - 1 ``multiplier`` times as often as the others."""

    begin: int
    end: int
    multiplier: float

    def index(self, share: float, count: int) -> int:
        """The timestep of ``count`` at a uniform number in [0, 1): the inverse of the cumulative distribution."""
        inside = (self.end - self.begin) * self.multiplier
        place = share * (inside + count - (self.end - self.begin))
        if place < self.begin:
            return int(place)
        if place < self.begin + inside:
            return min(self.begin + int((place - self.begin) / self.multiplier), self.end - 1)
        return min(self.end + int(place - self.begin - inside), count - 1)


class Diffusion(Objective):
    """x_t = alpha_t x + sigma_t eps, with alpha_t^2 + sigma_t^2 = 1 (Ho et al., 2020, eq. 4).

    ``alphas_cumprod`` (T,): alpha_t^2 for t = 0 .. T-1, float.
    """

    snr_offset: float = 0.0
    """An error of what is predicted is one of the data times SNR + this."""

    def __init__(
        self, alphas_cumprod: Tensor, weighting: MinSnr | None = None, bias: TimestepBias | None = None, part: range | None = None
    ) -> None:
        """``part``: the timesteps that are trained and evaluated; None for all. ``bias`` counts from its first."""
        self.weighting = weighting
        self.bias = bias
        self.part = range(len(alphas_cumprod)) if part is None else part
        squared = alphas_cumprod.double()
        self.alphas = squared.sqrt().float()
        self.sigmas = (1 - squared).sqrt().float()

    def sample_timesteps(self, generators: Sequence[torch.Generator], token_count: int, offset: float = 0.0) -> Tensor:
        """Uniform over ``part`` for any number of tokens, or by ``bias``."""
        if self.bias is not None:
            shares = [torch.rand(1, generator=generator, dtype=torch.float64).item() for generator in generators]
            return torch.tensor([self.part[self.bias.index(share, len(self.part))] for share in shares])
        return torch.cat([torch.randint(self.part.start, self.part.stop, (1,), generator=generator) for generator in generators])

    @property
    def is_partial(self) -> bool:
        return len(self.part) < len(self.alphas)

    def spread_timesteps(self, count: int) -> Tensor:
        return self.part.start + ((torch.arange(count, dtype=torch.float64) + 0.5) * len(self.part) / count).long()

    def add_noise(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(t, data)
        return alpha * data.float() + sigma * noise.float()

    def coefficients(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), each (B, 1, ...) with the rank and on the device of ``like``."""
        if self.alphas.device != like.device:
            # Once, so that no micro-batch waits for the device.
            self.alphas, self.sigmas = self.alphas.to(like.device), self.sigmas.to(like.device)
        index, shape = t.to(like.device), (-1,) + (1,) * (like.dim() - 1)
        return self.alphas[index].view(shape), self.sigmas[index].view(shape)

    def noise_level(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = (factor.flatten() for factor in self.coefficients(t, like))
        return t.to(like.device) / len(self.alphas), sigma / alpha

    def weight(self, noise_to_signal: Tensor) -> Tensor | None:
        return self.weighting.of(noise_to_signal, self.snr_offset) if self.weighting else None


class Epsilon(Diffusion):
    """The network learns the noise (Ho et al., 2020, eq. 14)."""

    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise.float()


class VPrediction(Diffusion):
    """The network learns the velocity v = alpha_t eps - sigma_t x (Salimans and Ho, 2022, appendix D)."""

    snr_offset = 1.0

    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.coefficients(t, data)
        return alpha * noise.float() - sigma * data.float()

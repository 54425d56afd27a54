"""The error of a prediction: its shape, and its mean over each sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ErrorShape:
    """``l2`` (e^2), or a pseudo-Huber loss (Charbonnier et al., 1997): quadratic below c and linear above it.

    ``huber`` is 2 c (sqrt(e^2 + c^2) - c), as steep as l2 for small errors; ``smooth_l1`` is 2 (sqrt(e^2 + c^2) - c).
    """

    kind: str = "l2"
    c: float = 0.1
    schedule: str = "constant"
    """How c depends on the noise (Khrapov et al., 2024): ``constant``, ``exponential`` or ``snr``."""

    def __call__(self, error: Tensor, progress: Tensor, noise_to_signal: Tensor) -> Tensor:
        """(B, ...) float32 errors -> the same shape. ``progress`` (B,) is 0 for data and 1 for noise; ``noise_to_signal`` (B,) is
        sigma_t / alpha_t."""
        if self.kind == "l2":
            return error.square()
        c = self.threshold(progress, noise_to_signal).to(error).view(-1, *[1] * (error.dim() - 1))
        # Equal to sqrt(e^2 + c^2) - c, whose subtraction would cancel most digits of a small e in float32.
        root = error.square() / ((error.square() + c.square()).sqrt() + c)
        return 2 * c * root if self.kind == "huber" else 2 * root

    def threshold(self, progress: Tensor, noise_to_signal: Tensor) -> Tensor:
        """c of each sample, (B,): 1 for data, falling to ``c`` for noise, unless it is constant."""
        if self.schedule == "exponential":
            return torch.exp(math.log(self.c) * progress)
        if self.schedule == "snr":
            return (1 - self.c) / (1 + noise_to_signal).square() + self.c
        return torch.full_like(progress, self.c)


def sample_means(error: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, C, ...) -> (B,) mean of each sample, over its masked elements if there is a mask.

    ``mask`` broadcasts to ``error``, such as (B, 1, ...): 1 counts, 0 does not, values between count in part. The mean of a sample whose
    mask is empty is 0.
    """
    if mask is None:
        return error.flatten(1).mean(dim=1)
    weights = mask.to(error).expand_as(error).flatten(1)
    return (error.flatten(1) * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(torch.finfo(error.dtype).tiny)

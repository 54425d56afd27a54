"""Rectified flow (Liu et al., 2022; Lipman et al., 2022): straight lines from data to noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer_engine.config.options.model import ObjectiveOptions
from trainer_engine.config.options.timesteps import parse_densities
from trainer_engine.objectives.base import Objective
from trainer_engine.objectives.cubic_schedule import CubicSchedule

Sample = Callable[[torch.Generator, float], float]
"""(generator, offset before the sigmoid, if there is one) -> one sigma in [0, 1]."""
SMALLEST_SIGNAL = 1e-6
FAST_SIGMAS = (*[1.0] * 7, 0.75, 0.5, 0.25)
"""Timesteps of a sampler with four steps, as often as each is trained: the first step decides most of the image."""
DYNAMIC_SHIFT = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
"""Defaults for a scheduler configuration without these values or with null; the order of the keys matters."""


GROWTH, SQUARE_ROOT, UNSHIFTED = "shift_growth", "square_root", "unshifted_seq_len"
"""Entries that a family adds to a scheduler configuration: the shift is the square root of the tokens over those at which it is 1."""


class FlowMatching(Objective):
    """x_t = (1 - t) x + t eps for t = sigma in [0, 1]; the network learns the velocity eps - x."""

    def __init__(self, sample: Sample, shift_of: Callable[[int], float]) -> None:
        """``shift_of(tokens)`` is the shift s for a sample of this many tokens; 1 means no shift."""
        self.sample = sample
        self.shift_of = shift_of

    def sample_timesteps(self, generators: Sequence[torch.Generator], token_count: int, offset: float = 0.0) -> Tensor:
        """Sampled, then shifted towards noise: s t / (1 + (s - 1) t) (Esser et al., 2024, eq. 23)."""
        shift = self.shift_of(token_count)
        sampled = torch.tensor([self.sample(generator, offset) for generator in generators], dtype=torch.float64)
        return (shift * sampled / (1 + (shift - 1) * sampled)).float()

    def spread_timesteps(self, count: int) -> Tensor:
        return ((torch.arange(count, dtype=torch.float64) + 0.5) / count).float()

    def add_noise(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = t.to(data.device, torch.float32).view(-1, *[1] * (data.dim() - 1))
        return (1 - sigma) * data.float() + sigma * noise.float()

    def target(self, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise.float() - data.float()

    def noise_level(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        sigma = t.to(like.device, torch.float32)
        return sigma, sigma / (1 - sigma).clamp_min(SMALLEST_SIGNAL)


def make_flow_matching(scheduler_config: Mapping[str, Any], options: ObjectiveOptions) -> FlowMatching:
    return FlowMatching(_sampler(options), _shift(scheduler_config, options))


def _sampler(options: ObjectiveOptions) -> Sample:
    if options.flux_fast_schedule:
        return lambda generator, _: FAST_SIGMAS[int(torch.randint(len(FAST_SIGMAS), (), generator=generator))]
    if options.flow_use_beta_schedule:
        a, b = options.flow_beta_schedule_alpha, options.flow_beta_schedule_beta
        return lambda generator, _: float(np.random.default_rng(generator.initial_seed()).beta(a, b))
    densities = parse_densities(options.flow_cubic_schedule_weights)
    if options.flow_use_uniform_schedule or (densities is not None and len(densities) < 2):
        return lambda generator, _: float(torch.rand((), generator=generator, dtype=torch.float64))
    if densities is not None:
        schedule = CubicSchedule(densities)
        return lambda generator, _: schedule.at(float(torch.rand((), generator=generator, dtype=torch.float64)))
    spread = options.flow_sigmoid_scale
    # Logit-normal (Esser et al., 2024, eq. 19).
    return lambda generator, offset: float(torch.sigmoid(spread * torch.randn((), generator=generator, dtype=torch.float64) + offset))


def _shift(config: Mapping[str, Any], options: ObjectiveOptions) -> Callable[[int], float]:
    if options.flux_fast_schedule:
        return lambda tokens: 1.0
    if options.flow_schedule_shift:
        static = options.flow_schedule_shift
        return lambda tokens: static
    if not options.flow_schedule_auto_shift:
        return lambda tokens: 1.0
    if config.get(GROWTH) == SQUARE_ROOT:
        unshifted = float(config[UNSHIFTED])
        return lambda tokens: math.sqrt(tokens / unshifted)
    low, high, first, last = (usual if config.get(key) is None else config[key] for key, usual in DYNAMIC_SHIFT.items())

    def shift_of(tokens: int) -> float:
        """exp(mu) with mu linear in the tokens, as in the base model's scheduler."""
        return math.exp(first + (last - first) * (tokens - low) / (high - low))

    return shift_of

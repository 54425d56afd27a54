"""Random numbers that belong to a sample of a step, not to a process.

The generator of a sample is seeded by (seed, optimizer step, index of the sample in the global batch): the same run on one
process with twice the batch and on two processes gets the same numbers, and so does a run that was stopped and resumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer_engine.runtime.seeds import derived_seed


def seed_network(seed: int, device: torch.device) -> None:
    """Give a network on ``device`` (dropout and the like) the random numbers that ``torch.manual_seed(seed)`` would give it.

    NOTE: that function seeds every kind of device that this PyTorch knows, and for one that was never used it formats the whole call
    stack: 0.1 to 0.2 ms in every micro-batch of a run on a CPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)


def sample_generators(seed: int, step: int, indices: Sequence[int], purpose: str = "noise") -> list[torch.Generator]:
    """One CPU generator a sample. ``indices`` count over the whole optimizer step, every rank and micro-batch;
    ``purpose`` gives independent uses (noise, timestep, dropout) different numbers."""
    return [torch.Generator().manual_seed(derived_seed(seed, step, index, purpose)) for index in indices]


def channel_offsets(generators: Sequence[torch.Generator], shape: Sequence[int], *, scale: float, probability: float) -> Tensor:
    """(B, C, 1, ...) for latents of ``shape`` (C, ...): ``scale`` times a normal number for each channel, or zeros.

    A sample has offsets with the given probability (Guttenberg, 2023, "Diffusion with Offset Noise").
    """
    offsets = torch.zeros((len(generators), shape[0], *[1] * (len(shape) - 1)))
    for sample, generator in zip(offsets, generators, strict=True):
        if torch.rand(1, generator=generator).item() < probability:
            sample += scale * torch.randn(sample.shape, generator=generator)
    return offsets


def sample_noise(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, (B, *shape) float32 on the CPU, each sample from its own generator."""
    noise = torch.empty((len(generators), *shape))
    for sample, generator in zip(noise, generators, strict=True):
        torch.randn(tuple(shape), generator=generator, out=sample)
    return noise

"""Noise that is shifted for a channel, and noise in the input alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainer_engine.batches.test_loader import collator, source
from trainer_engine.batches.batch import Batch
from trainer_engine.batches.sampler import BatchSizes, Sampler
from trainer_engine.config.options.model import ObjectiveOptions

ITEMS = Sampler((source(),), BatchSizes(8, 1), 1, by_size=True).step(0)[0]


def batch_of(*, step: int = 0, rank: int = 0, processes: int = 1, **options: Any) -> Batch:
    return collator(rank, processes, noise=ObjectiveOptions(**options)).collate(step, 0, ITEMS, 0)


def offsets_of(batch: Batch) -> torch.Tensor:
    """(B, C) what was added to the noise of each channel."""
    difference = batch.noise - batch_of().noise
    offsets = difference.flatten(2).mean(dim=2)
    assert torch.allclose(difference, offsets[..., None, None].expand_as(difference), atol=1e-6), "one constant for each channel"
    return offsets


def test_every_sample_has_an_offset_for_each_channel_at_probability_one() -> None:
    offsets = offsets_of(batch_of(offset_noise=True, noise_offset=0.5, noise_offset_probability=1.0))
    assert (offsets != 0).all() and offsets.unique().numel() == offsets.numel()
    assert 0.2 < offsets.std().item() < 0.9


def test_the_share_of_samples_with_offsets_follows_the_probability() -> None:
    chosen = {"offset_noise": True, "noise_offset_probability": 0.25}
    changed = [
        bool((batch_of(step=step, **chosen).noise[row] != batch_of(step=step).noise[row]).any()) for step in range(50) for row in range(8)
    ]
    assert 70 <= sum(changed) <= 130


def test_two_processes_shift_the_samples_that_one_shifts_alone() -> None:
    chosen = {"offset_noise": True, "noise_offset_probability": 0.5, "input_perturbation": 0.1}
    alone = batch_of(**chosen)
    first, second = (batch_of(rank=rank, processes=2, **chosen) for rank in (0, 1))
    assert torch.equal(torch.cat([first.noise, second.noise]), alone.noise)
    assert first.input_noise is not None and second.input_noise is not None and alone.input_noise is not None
    assert torch.equal(torch.cat([first.input_noise, second.input_noise]), alone.input_noise)


@pytest.mark.parametrize(("step", "steps", "scale"), [(0, 0, 0.1), (700, 0, 0.1), (0, 10, 0.1), (5, 10, 0.05), (10, 10, 0.0)])
def test_the_perturbation_of_the_input_fades_and_leaves_what_is_learned_alone(step: int, steps: int, scale: float) -> None:
    batch, plain = batch_of(step=step, input_perturbation=0.1, input_perturbation_steps=steps), batch_of(step=step)
    assert torch.equal(batch.noise, plain.noise) and plain.input_noise is None
    if not scale:
        assert batch.input_noise is None
        return
    assert batch.input_noise is not None
    assert (batch.input_noise - batch.noise).std().item() == pytest.approx(scale, rel=0.1)

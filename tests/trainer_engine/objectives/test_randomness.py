from __future__ import annotations

import traceback

import pytest
import torch

from trainer_engine.objectives.randomness import derived_seed, sample_generators, sample_noise, seed_network


def test_two_ranks_get_the_numbers_of_one_rank_with_twice_the_batch() -> None:
    whole = sample_noise(sample_generators(42, 7, [0, 1, 2, 3]), (4, 8, 8))
    first = sample_noise(sample_generators(42, 7, [0, 1]), (4, 8, 8))
    second = sample_noise(sample_generators(42, 7, [2, 3]), (4, 8, 8))
    assert torch.equal(whole, torch.cat([first, second]))


def test_every_sample_step_seed_and_purpose_has_numbers_of_its_own() -> None:
    keys = [(42, 0, 0, "noise"), (42, 0, 1, "noise"), (42, 1, 0, "noise"), (43, 0, 0, "noise"), (42, 0, 0, "dropout"), (4, 20, 0, "noise")]
    numbers = {torch.rand(1, generator=sample_generators(seed, step, [index], purpose)[0]).item() for seed, step, index, purpose in keys}
    assert len(numbers) == len(keys)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    sample_noise(sample_generators(1, 2, [3]), (4, 8, 8))
    assert torch.equal(before, torch.get_rng_state())


def test_noise_has_any_rank() -> None:
    video = sample_noise(sample_generators(1, 2, [3, 4]), (4, 2, 8, 8))
    assert video.shape == (2, 4, 2, 8, 8)
    assert torch.equal(video.flatten(1), sample_noise(sample_generators(1, 2, [3, 4]), (512,)))


def test_noise_is_standard_normal() -> None:
    noise = sample_noise(sample_generators(0, 0, range(8)), (4, 64, 64))
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01


def test_a_derived_seed_is_the_same_on_every_machine() -> None:
    assert derived_seed(42, 7, 0, "noise") == derived_seed(42, 7, 0, "noise") < 2**63
    assert derived_seed(42, 7, 0, "noise") != derived_seed(42, 70, "noise")


def test_a_network_is_seeded_with_the_numbers_that_torch_itself_would_give_it() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2**62 + 5)
        wanted = torch.rand(4)
        seed_network(2**62 + 5, torch.device("cpu"))
        assert torch.equal(torch.rand(4), wanted)


def test_seeding_a_network_formats_no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the call stack was formatted")

    monkeypatch.setattr(traceback, "format_stack", refuse)
    with torch.random.fork_rng():
        seed_network(1, torch.device("cpu"))

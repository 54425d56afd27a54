"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer_engine.ema import MovingAverage


def network(dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 2).to(dtype)


def fill(net: nn.Module, value: float) -> None:
    with torch.no_grad():
        for weight in net.parameters():
            weight.fill_(value)


def test_the_average_follows_its_formula() -> None:
    net = network()
    fill(net, 0.0)
    average = MovingAverage(net, decay=0.9, update_interval=1)
    fill(net, 1.0)
    wanted = 0.0
    for update in range(40):
        average.update()
        decay = min(0.9, (1 + update) / (10 + update))
        wanted = decay * wanted + (1 - decay)
    assert average.tensors()["weight"][0, 0].item() == pytest.approx(wanted, rel=1e-5)


def test_only_the_steps_of_the_interval_count() -> None:
    average = MovingAverage(network(), decay=0.9, update_interval=3)
    for step in range(1, 10):
        average.after_step(step)
    assert average.updates == 3


def test_the_average_stands_in_for_the_block_alone() -> None:
    net = network()
    live = [weight.detach().clone() for weight in net.parameters()]
    average = MovingAverage(net, decay=0.5, update_interval=1)
    fill(net, 7.0)
    with pytest.raises(RuntimeError), average.in_place() as inside:
        assert all(torch.equal(weight, other) for weight, other in zip(inside.parameters(), live, strict=True))
        raise RuntimeError
    assert all(bool((weight == 7).all()) for weight in net.parameters())


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    net = network(torch.bfloat16)
    fill(net, 1.0)
    average = MovingAverage(net, decay=0.995, update_interval=1)
    average.updates = 10_000
    fill(net, 2.0)
    average.update()
    assert average.tensors()["weight"].dtype == torch.float32
    assert average.tensors()["weight"][0, 0].item() == pytest.approx(1.005, rel=1e-5)


def test_an_average_goes_on_where_it_was() -> None:
    first, second = MovingAverage(network(), 0.9, 1), MovingAverage(network(), 0.9, 1)
    for _ in range(3):
        first.update()
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()}, first.updates)
    assert second.updates == 3
    with pytest.raises(KeyError):
        second.restore({}, 1)


def test_frozen_weights_are_left_out() -> None:
    net = network()
    net.bias.requires_grad_(False)
    assert list(MovingAverage(net, 0.9, 1).tensors()) == ["weight"]

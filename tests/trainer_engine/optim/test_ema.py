"""The moving average follows its formula, in bounded memory, and can be put in place and restored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_engine.optim.ema import GROUP_BYTES, MovingAverage


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


def test_the_average_equals_that_of_diffusers() -> None:
    """Diffusers copies the weights at its first update; here they have not moved yet, so both begin alike."""
    net = network()
    average, reference = MovingAverage(net, decay=0.95, update_interval=1), EMAModel(net.parameters(), decay=0.95)
    for step in range(60):
        average.update()
        reference.step(net.parameters())
        for ours, theirs in zip(average.tensors().values(), reference.shadow_params, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        fill(net, float(step % 7))


def test_the_average_is_updated_only_at_multiples_of_the_interval() -> None:
    average = MovingAverage(network(), decay=0.9, update_interval=3)
    for step in range(1, 10):
        average.after_step(step)
    assert average.updates == 3


def test_the_average_replaces_the_weights_only_inside_the_block() -> None:
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


class Copies(TorchDispatchMode):
    """Records the most bytes of float32 copies made between two updates of averages."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._since = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self._since += answer.nbytes
        elif func is torch.ops.aten._foreach_lerp_.Scalar:
            self.most, self._since = max(self.most, self._since), 0
        return answer


def sizes(dtype: torch.dtype, elements: Sequence[int]) -> nn.Module:
    """Returns a network with one weight of each size."""
    net = nn.Module()
    generator = torch.Generator().manual_seed(0)
    for number, size in enumerate(elements):
        net.register_parameter(f"w{number}", nn.Parameter(torch.randn(size, generator=generator).to(dtype)))
    return net


def test_an_update_of_short_weights_copies_a_bounded_group_at_a_time() -> None:
    average = MovingAverage(sizes(torch.bfloat16, [GROUP_BYTES // 16] * 12), decay=0.9, update_interval=1)
    with Copies() as copies:
        average.update()
    assert 0 < copies.most <= GROUP_BYTES


def test_float32_weights_are_averaged_without_any_copy_in_one_operator() -> None:
    average = MovingAverage(sizes(torch.float32, [8] * 100), decay=0.9, update_interval=1)
    with Copies() as copies:
        average.update()
    assert copies.most == 0 and len(average._groups) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_in_groups_has_the_bits_of_one_over_all_weights(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_engine.optim.ema.GROUP_BYTES", 400)
    net = sizes(dtype, [7, 100, 33, 5000, 1, 64])
    average = MovingAverage(net, decay=0.9, update_interval=1)
    wanted = [weight.detach().float().clone() for weight in net.parameters()]
    for update in range(3):
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(1.1)
        torch._foreach_lerp_(wanted, [weight.detach().float() for weight in net.parameters()], 1 - (1 + update) / (10 + update))
        average.update()
    assert all(torch.equal(ours, one) for ours, one in zip(average.tensors().values(), wanted, strict=True))


def test_an_update_does_not_walk_over_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    average = MovingAverage(net, decay=0.9, update_interval=1)
    monkeypatch.setattr(net, "named_parameters", None)
    average.update()
    with average.in_place():
        pass


def test_a_restored_average_continues_from_its_update() -> None:
    first, second = MovingAverage(network(), 0.9, 1), MovingAverage(network(), 0.9, 1)
    for _ in range(3):
        first.update()
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()}, first.updates)
    assert second.updates == 3
    with pytest.raises(KeyError):
        second.restore({}, 1)


def test_the_average_leaves_out_frozen_weights() -> None:
    net = network()
    net.bias.requires_grad_(False)
    assert list(MovingAverage(net, 0.9, 1).tensors()) == ["weight"]


def test_the_average_copies_the_weights_during_the_warm_up() -> None:
    net = network()
    average = MovingAverage(net, decay=0.9, update_interval=2, warmup_steps=3)
    for step in range(1, 4):
        fill(net, float(step))
        average.after_step(step)
        assert average.updates == 0 and torch.equal(average.tensors()["weight"], net.weight)
    fill(net, 13.0)
    average.after_step(4)
    # The first update keeps a tenth of what was there: of the last copy.
    assert average.updates == 1 and average.tensors()["weight"][0, 0].item() == pytest.approx(0.1 * 3 + 0.9 * 13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_weight_at_a_time_gives_the_same_numbers(dtype: torch.dtype) -> None:
    nets = network(dtype), network(dtype)
    averages = MovingAverage(nets[0], 0.9, 1), MovingAverage(nets[1], 0.9, 1, is_grouped=False, device=torch.device("cpu"))
    for step in range(1, 6):
        for net, average in zip(nets, averages, strict=True):
            fill(net, 0.1 * step)
            average.after_step(step)
    assert all(torch.equal(one, averages[1].tensors()[name]) for name, one in averages[0].tensors().items())


def test_an_average_on_another_device_is_put_in_place_and_taken_out_again() -> None:
    with torch.device("meta"):
        elsewhere = nn.Linear(3, 2)
    net = network()
    average = MovingAverage(net, 0.9, 1, device=torch.device("meta"))
    assert {tensor.device.type for tensor in average.tensors().values()} == {elsewhere.weight.device.type}
    before = net.weight.clone()
    average = MovingAverage(net, 0.9, 1, device=torch.device("cpu"), warmup_steps=1)
    fill(net, 4.0)
    average.after_step(1)
    fill(net, 5.0)
    with average.in_place():
        assert torch.equal(net.weight, torch.full_like(before, 4.0))
    assert torch.equal(net.weight, torch.full_like(before, 5.0))

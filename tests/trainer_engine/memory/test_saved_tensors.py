"""What autograd saves waits on the host and comes back in the order in which the backward pass needs it."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer_engine.memory.saved_tensors import SMALLEST_BYTES, SavedOnHost
from trainer_engine.memory.transfers import HostPool, Transfers, Wait, transfers_of

CPU = torch.device("cpu")


class RecordedTransfers(Transfers):
    """Writes down each copy and each wait for one, with the first number of what is copied."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.events: list[str] = []

    def copy(self, source: Tensor, target: Tensor) -> Wait:
        super().copy(source, target)
        number = int(source.view(torch.float32)[0])
        self.events.append(f"copy {number}")
        return lambda: self.events.append(f"wait {number}")


def products(saved: SavedOnHost, factors: list[Tensor]) -> Tensor:
    """The product of the factors and a leaf of ones; autograd saves each factor."""
    result = torch.ones_like(factors[0], requires_grad=True)
    with saved.of(lambda tensor: any(tensor.data_ptr() == factor.data_ptr() for factor in factors)):
        for factor in factors:
            result = result * factor
    return result.sum()


def factors_of(*values: int, size: int = SMALLEST_BYTES) -> list[Tensor]:
    return [torch.full((size // 4,), float(value)) for value in values]


@pytest.mark.parametrize(
    ("prefetch", "backward"),
    [
        (False, ["copy 4", "wait 4", "copy 3", "wait 3", "copy 2", "wait 2"]),
        (True, ["copy 4", "copy 3", "wait 4", "copy 2", "wait 3", "wait 2"]),
    ],
)
def test_saved_tensors_return_in_reverse_order(prefetch: bool, backward: list[str]) -> None:
    transfers = RecordedTransfers()
    total = products(SavedOnHost(transfers, prefetch=prefetch, pinned_sizes=4), factors_of(2, 3, 4))
    assert transfers.events == ["copy 2", "copy 3", "copy 4"]
    transfers.events.clear()
    total.backward()
    assert transfers.events == backward


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_a_tensor_returns_with_its_strides(order: tuple[int, ...]) -> None:
    weight, seen = torch.ones(8, 16, 24, requires_grad=True), list[tuple[int, ...]]()

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, factor: Tensor, other: Tensor) -> Tensor:
            context.save_for_backward(other)
            return factor * other

        @staticmethod
        def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
            (other,) = context.saved_tensors
            seen.append(other.stride())
            return gradients[0] * other, None

    other = torch.rand([(8, 16, 24)[one] for one in order]).permute([order.index(one) for one in range(3)])
    with SavedOnHost(transfers_of(CPU), prefetch=False, pinned_sizes=4).of(lambda tensor: True):
        product = Product.apply(weight, other)
    product.sum().backward()
    assert seen == [other.stride()]
    assert weight.grad is not None and torch.equal(weight.grad, other)


def test_gradients_are_those_without_the_host() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(32, 32, generator=generator) for _ in range(3)]

    def gradient(saved: SavedOnHost | None) -> Tensor:
        x = torch.ones(32, 32, requires_grad=True)
        with saved.of(lambda _: True) if saved else torch.enable_grad():
            y = x
            for weight in weights:
                y = torch.tanh(y @ weight).t()
        y.square().sum().backward()
        assert x.grad is not None
        return x.grad

    assert torch.equal(gradient(SavedOnHost(transfers_of(CPU), prefetch=True, pinned_sizes=1)), gradient(None))


def test_small_and_unwanted_tensors_stay_on_the_device() -> None:
    transfers = RecordedTransfers()
    saved = SavedOnHost(transfers, prefetch=False, pinned_sizes=4)
    products(saved, factors_of(2, size=SMALLEST_BYTES - 4)).backward()
    other = torch.full((SMALLEST_BYTES,), 5.0)
    with saved.of(lambda _: False):
        (torch.ones_like(other, requires_grad=True) * other).sum().backward()
    assert transfers.events == []


def test_a_graph_that_is_walked_twice_finds_its_tensors_again() -> None:
    x = torch.full((SMALLEST_BYTES,), 2.0, requires_grad=True)
    with SavedOnHost(transfers_of(CPU), prefetch=True, pinned_sizes=4).of(lambda _: True):
        y = (x * x).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    again = torch.autograd.grad(y, x)[0]
    assert torch.equal(first, again) and torch.equal(first, 2 * x)


def test_host_memory_is_used_again_once_a_step_is_over() -> None:
    asked: list[bool] = []

    class Counted(Transfers):
        def host_bytes(self, size: int, *, pinned: bool = True) -> Tensor:
            asked.append(pinned)
            return super().host_bytes(size)

    saved = SavedOnHost(Counted(CPU), prefetch=True, pinned_sizes=4)
    for _ in range(3):
        products(saved, factors_of(2, 3, 4)).backward()
        gc.collect()
    assert asked == [True, True, True]


def test_a_pool_pins_only_so_many_sizes() -> None:
    asked: list[tuple[int, bool]] = []

    class Counted(Transfers):
        def host_bytes(self, size: int, *, pinned: bool = True) -> Tensor:
            asked.append((size, pinned))
            return super().host_bytes(size)

    class Owner:
        pass

    pool, owner = HostPool(Counted(CPU), max_sizes=1), Owner()
    for size in (8, 16, 8):
        pool.take(size, owner)
    del owner
    gc.collect()
    pool.take(8, Owner())
    pool.take(16, Owner())
    assert asked == [(8, True), (16, False), (8, True), (16, False)]

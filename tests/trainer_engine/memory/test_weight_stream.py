"""Weights on the host: which unit is on the device when it is used, forward and backward, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer_engine.memory.host_weights import Unit, frozen_owners, map_plain, plain_tensors
from trainer_engine.memory.transfers import Transfers, Wait
from trainer_engine.memory.weight_stream import SLOTS, WeightStream, make_units

CPU = torch.device("cpu")
BLOCKS = 5


class Block(nn.Module):
    """A frozen feed-forward block with dropout and a trained low-rank addition."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.dropout = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(0.3)
        self.requires_grad_(False)
        self.first, self.second = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(torch.relu(self.up(self.norm(x))))) + self.second(self.first(x))


class RecordedTransfers(Transfers):
    """Overwrites what a slot held before it is filled, so that a use of evicted weights gives NaN, and writes copies down."""

    def __init__(self, names: dict[int, str] | None = None) -> None:
        super().__init__(CPU)
        self.events: list[str] = []
        self.names = names if names is not None else {}

    def copy(self, source: Tensor, target: Tensor) -> Wait:
        target.fill_(255)
        super().copy(source, target)
        name = self.names.get(source.data_ptr(), "?")
        self.events.append(f"copy {name}")
        return lambda: self.events.append(f"wait {name}")


def network() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(Block() for _ in range(BLOCKS))


def step(blocks: nn.ModuleList, recomputed: int = 0) -> list[Tensor]:
    """Gradients of one step; ``recomputed``: every n-th block is checkpointed, 0 for none."""
    for parameter in blocks.parameters():
        parameter.grad = None
    torch.manual_seed(1)
    x = torch.randn(3, 8)
    for index, block in enumerate(blocks):
        x = checkpoint(block, x, use_reentrant=False) if recomputed and index % recomputed == 0 else block(x)
    x.square().sum().backward()
    return [parameter.grad.clone() for parameter in blocks.parameters() if parameter.grad is not None]


def streamed(groups: Sequence[Sequence[nn.Module]], *, prefetch: bool = True) -> tuple[WeightStream, RecordedTransfers]:
    transfers = RecordedTransfers()
    units = make_units(groups, transfers.host_bytes)
    transfers.names.update({unit.host.data_ptr(): str(number) for number, (_, unit) in enumerate(units)})
    return WeightStream(units, transfers, prefetch=prefetch), transfers


def leaves(blocks: nn.ModuleList) -> list[list[nn.Module]]:
    return [[leaf] for block in blocks for leaf in (block.norm, block.up, block.down)]


@pytest.mark.parametrize("recomputed", [0, 1, 2])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("kind", ["blocks", "pairs", "leaves"])
def test_gradients_equal_those_of_weights_that_stay(recomputed: int, prefetch: bool, kind: str) -> None:
    wanted = step(network(), recomputed)
    blocks = network()
    groups = {"blocks": [[block] for block in blocks], "pairs": [blocks[:2], blocks[2:4], blocks[4:]], "leaves": leaves(blocks)}[kind]
    stream, _ = streamed(groups, prefetch=prefetch)
    for _ in range(3):
        found = step(blocks, recomputed)
        assert len(found) == len(wanted) == 2 * BLOCKS
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert len(stream.resident) <= (SLOTS if prefetch else 1)


@pytest.mark.parametrize("recomputed", [0, 1])
def test_each_block_is_copied_while_its_neighbour_computes(recomputed: int) -> None:
    blocks = network()
    stream, transfers = streamed([[block] for block in blocks])
    for number, block in enumerate(blocks):
        block.norm.register_forward_pre_hook(lambda *_, number=number: transfers.events.append(f"use {number}"))
    step(blocks, recomputed)
    transfers.events.clear()
    step(blocks, recomputed)
    events = [event for event in transfers.events if not event.startswith("wait")]
    # The backward pass before ended with blocks 1 and 0, and the forward pass ends with 3 and 4: these are not copied again.
    forward = ["use 0", "copy 2", "use 1", "copy 3", "use 2", "copy 4", "use 3", "use 4"]
    again = [["copy 2", "copy 1", "copy 0"], ["use 4", "copy 2", "use 3", "copy 1", "use 2", "copy 0", "use 1", "use 0"]]
    assert events == forward + again[recomputed]
    assert {stream.units.index(unit) for unit in stream.resident} == {0, 1}


def test_a_copy_is_waited_for_once_and_before_its_use() -> None:
    blocks = network()
    _, transfers = streamed([[block] for block in blocks])
    step(blocks)
    copied: set[str] = set()
    for event, number in (entry.split() for entry in transfers.events):
        assert (number in copied) is (event == "wait")
        copied ^= {number}


def test_images_between_two_steps_change_no_gradient() -> None:
    wanted, blocks = step(network()), network()
    streamed([[block] for block in blocks])
    step(blocks)
    with torch.no_grad():
        for _ in range(2):
            x = torch.zeros(1, 8)
            for block in blocks:
                x = block(x)
    assert all(torch.equal(one, other) for one, other in zip(step(blocks), wanted, strict=True))


def test_an_error_in_a_forward_pass_leaves_no_hooks_behind() -> None:
    blocks = network()
    stream, _ = streamed([[block] for block in blocks])
    with pytest.raises(RuntimeError, match="normalized_shape"):
        blocks[0](torch.zeros(1, 9))
    assert stream._open == []
    x = torch.ones(2, 2, requires_grad=True)
    (x * x).sum().backward()
    assert torch.equal(x.grad, 2 * x)


def test_weights_can_be_read_wherever_they_are() -> None:
    wanted = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    blocks = network()
    streamed([[block] for block in blocks])
    for _ in range(2):
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in blocks.state_dict().items())
        step(blocks)


def test_trained_weights_stay_and_keep_their_identity() -> None:
    blocks = network()
    trained = [parameter for parameter in blocks.parameters() if parameter.requires_grad]
    streamed([[block] for block in blocks])
    step(blocks)
    assert [id(one) for one in blocks.parameters() if one.requires_grad] == [id(one) for one in trained]


def test_a_weight_that_two_units_share_stays_where_it_is() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
    second.weight = first.weight
    nn.ModuleList([first, second]).requires_grad_(False)
    units = make_units([[first], [second]], Transfers(CPU).host_bytes)
    assert [[owner.name for owner in unit.owners] for _, unit in units] == [["bias"]]
    assert first.weight is second.weight


class Scaled(nn.Module):
    """A layer that keeps its weights as a buffer, and reads them in the backward pass without saving them."""

    def __init__(self, is_on_device: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randn(8, 8))
        self.is_on_device = is_on_device

    def forward(self, x: Tensor) -> Tensor:
        layer = self

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(_context: object, x: Tensor) -> Tensor:
                assert layer.is_on_device(layer.packed)
                return x @ layer.packed

            @staticmethod
            def backward(_context: object, gradient: Tensor) -> Tensor:
                assert layer.is_on_device(layer.packed)
                return gradient @ layer.packed.t()

        result: Tensor = Product.apply(x)
        return torch.tanh(result)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("prefetch", [False, True])
def test_weights_that_no_one_saves_are_there_in_the_backward_pass(recomputed: bool, prefetch: bool) -> None:
    def gradient(layers: nn.ModuleList) -> Tensor:
        leaf = torch.linspace(-1, 1, 24).view(3, 8).requires_grad_()
        x: Tensor = leaf
        for layer in layers:
            x = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
        x.square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    def layers(is_on_device: Callable[[Tensor], bool]) -> nn.ModuleList:
        torch.manual_seed(0)
        return nn.ModuleList(Scaled(is_on_device) for _ in range(4))

    slots: set[int] = set()
    wanted, made = gradient(layers(lambda _: True)), layers(lambda one: one.untyped_storage().data_ptr() in slots)
    stream, _ = streamed([[layer] for layer in made], prefetch=prefetch)
    slots.update(stream._by_address)
    for _ in range(3):
        assert torch.equal(gradient(made), wanted)


class Halves(Tensor):
    """A tensor that consists of two plain ones, as quantised weights of quanto and torchao do."""

    @staticmethod
    def __new__(cls, low: Tensor, high: Tensor) -> Halves:
        return Tensor._make_wrapper_subclass(cls, low.shape, dtype=torch.float32)  # type: ignore[attr-defined,no-any-return]

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["low", "high"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], _context: None, _size: object, _stride: object) -> Halves:
        return Halves(inner["low"], inner["high"])

    @classmethod
    def __torch_dispatch__(cls, function: object, types: object, args: tuple[object, ...] = (), kwargs: object = None) -> Tensor:
        if function is torch.ops.aten.detach.default:
            (one,) = args
            assert isinstance(one, Halves)
            return Halves(one.low, one.high)
        raise NotImplementedError(str(function))


def test_a_tensor_of_several_parts_moves_with_each_of_them() -> None:
    layer = nn.Module()
    low, high = torch.arange(6, dtype=torch.int8).view(2, 3), torch.tensor([0.5, 0.25])
    layer.weight = nn.Parameter(Halves(low, high), requires_grad=False)
    unit = Unit.of(frozen_owners(layer), Transfers(CPU).host_bytes)
    slot = torch.zeros(unit.host.nbytes + 64, dtype=torch.uint8)
    slot[: unit.host.nbytes].copy_(unit.host)
    unit.bind(0, slot)
    parts = plain_tensors(layer.weight.detach())
    assert [part.untyped_storage().data_ptr() for part in parts] == [slot.untyped_storage().data_ptr()] * 2
    assert torch.equal(parts[0], low) and torch.equal(parts[1], high)
    unit.unbind()
    assert [part.untyped_storage().data_ptr() for part in plain_tensors(layer.weight.detach())] == [unit.host.data_ptr()] * 2
    doubled = map_plain(layer.weight.detach(), lambda part: part * 2)
    assert torch.equal(plain_tensors(doubled)[1], 2 * high)


def test_weights_that_torchao_quantised_are_streamed() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")

    def quantised() -> nn.Sequential:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).requires_grad_(False)
        quantization.quantize_(layers, quantization.Int8WeightOnlyConfig())
        return layers

    def gradient(layers: nn.Module) -> Tensor:
        x = torch.linspace(-1, 1, 96).view(3, 32).requires_grad_()
        layers(x).square().sum().backward()
        assert x.grad is not None
        return x.grad

    layers = quantised()
    stream, _ = streamed([[layers[0]], [layers[2]]])
    assert [len(unit.owners) for unit in stream.units] == [2, 2]
    wanted = gradient(quantised())
    assert torch.equal(gradient(layers), wanted) and torch.equal(gradient(layers), wanted)

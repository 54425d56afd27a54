"""Spread weights: which parameters are spread, where their parts lie, and that the network computes what it computed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tests.helpers.ranks import on_ranks
from trainer_engine.runtime.sharding import any_sharded, devices_of_sharded, is_sharded, own_part, shard, sharded_as, spread_like, whole

CPU = torch.device("cpu")


class Block(nn.Module):
    """A frozen layer with trained factors below it, as an adapter is."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6)
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x @ self.down.T @ self.up.T
        return torch.tanh(self.base(x) + added)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """A group of this process alone, which has all parts."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def network(*, is_frozen: bool) -> tuple[Network, list[nn.Parameter]]:
    """A network and the trained factors in it; its other weights may be frozen."""
    torch.manual_seed(3)
    made = Network()
    factors = [parameter for name, parameter in made.named_parameters() if name.endswith(("down", "up"))]
    made.requires_grad_(not is_frozen)
    for factor in factors:
        factor.requires_grad_(True)
    return made, factors


def gradients(one: nn.Module, parameters: list[nn.Parameter]) -> list[Tensor]:
    for parameter in parameters:
        parameter.grad = None
    one(torch.linspace(-1, 1, 8).reshape(2, 4)).square().sum().backward()
    return [whole(parameter.grad) for parameter in parameters if parameter.grad is not None]


def spread(one: nn.Module, **how: Any) -> None:
    shard(one, ("Block",), 1, CPU, **{"frees_after_forward": True, **how})


@pytest.mark.parametrize("waits_on_host", [False, True])
def test_complete_parameters_stay_and_get_the_gradients_of_a_network_that_is_not_spread(waits_on_host: bool) -> None:
    plain, factors = network(is_frozen=True)
    wanted = gradients(plain, factors)
    made, factors = network(is_frozen=True)
    spread(made, waits_on_host=waits_on_host, complete=factors)
    assert is_sharded(made) and not any_sharded(factors)
    of_base = [parameter for name, parameter in made.named_parameters() if not name.endswith(("down", "up"))]
    assert len(of_base) == 6 and all(isinstance(parameter, DTensor) for parameter in of_base)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(made, factors), wanted, strict=True))
    assert all(parameter.grad is None for parameter in of_base)


def test_all_parameters_are_spread_unless_some_are_to_stay_complete() -> None:
    plain, _ = network(is_frozen=False)
    wanted = gradients(plain, list(plain.parameters()))
    made, _ = network(is_frozen=False)
    assert not is_sharded(made) and not any_sharded(made.parameters())
    spread(made, waits_on_host=True)
    assert all(isinstance(parameter, DTensor) for parameter in made.parameters())
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(gradients(made, list(made.parameters())), wanted, strict=True))


def test_a_spread_network_names_the_device_that_it_computes_on() -> None:
    made: Any = network(is_frozen=True)[0]
    spread(made, waits_on_host=True)
    assert made.device == CPU and devices_of_sharded(made) == {CPU}
    assert devices_of_sharded(network(is_frozen=True)[0]) == set()
    assert not hasattr(network(is_frozen=True)[0], "device"), "other networks of the class do not change"


def test_tensors_are_spread_as_the_parameter_they_belong_to_and_gathered_again() -> None:
    made, _ = network(is_frozen=False)
    spread(made, waits_on_host=True)
    weight = made.first.weight
    average = torch.arange(24.0).reshape(6, 4)
    part = spread_like(average, weight)
    assert isinstance(part, DTensor) and part.placements == weight.placements and torch.equal(whole(part), average)
    assert torch.equal(whole(sharded_as(own_part(part), weight)), average)
    counter = torch.tensor(3.0)
    assert spread_like(counter, weight) is counter and whole(counter) is counter and own_part(average) is average


def parts_of_two() -> dict[str, Any]:
    """What two ranks have of a network that only the first one has the weights of; the second one even has other types."""
    made, factors = network(is_frozen=True)
    made.register_buffer("scale", torch.tensor(3.0))
    wanted = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    wanted_gradients = gradients(made, factors)
    for factor in factors:
        factor.grad = None
    if torch.distributed.get_rank() == 1:
        made.to(torch.float64)
        for tensor in made.state_dict().values():
            tensor.zero_()
    shard(made, ("Block",), 2, CPU, frees_after_forward=True, waits_on_host=True, from_first=True, complete=factors)
    state = made.state_dict()
    gathered = {name: whole(tensor) for name, tensor in state.items()}
    kept = sum(own_part(tensor).numel() for name, tensor in state.items() if name.endswith(("weight", "bias")))
    same = all(torch.equal(tensor, wanted[name]) and tensor.dtype == torch.float32 for name, tensor in gathered.items())
    alike = all(torch.equal(ours, theirs) for ours, theirs in zip(gradients(made, factors), wanted_gradients, strict=True))
    mine = torch.tensor([same, alike, kept], dtype=torch.int64)
    found = [torch.zeros_like(mine) for _ in range(2)]
    torch.distributed.all_gather(found, mine)
    return {"same": [one[0].item() for one in found], "alike": [one[1].item() for one in found], "kept": [one[2].item() for one in found]}


@pytest.mark.slow
def test_each_of_two_ranks_has_half_of_the_weights_that_the_first_one_read(tmp_path: Path) -> None:
    found = on_ranks(tmp_path, "tests.trainer_engine.runtime.test_sharding:parts_of_two")
    of_base = 4 * 6 + 6 + 2 * (6 * 6 + 6)
    assert found == {"same": [1, 1], "alike": [1, 1], "kept": [of_base // 2] * 2}

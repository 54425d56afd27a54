"""Spreads the weights of a network over all processes (FSDP 2, ``fully_shard`` of PyTorch), and gathers them again.

A sharded weight is a ``DTensor``: each process holds some of its rows, of its gradient and of its optimizer state. The blocks of the
network gather their weights while they compute.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(
    network: nn.Module,
    blocks: Collection[str],
    processes: int,
    device: torch.device,
    *,
    frees_after_forward: bool,
    waits_on_host: bool = False,
    from_first: bool = False,
    complete: Collection[nn.Parameter] = (),
) -> None:
    """Spread the weights of a network over so many processes, in place. Every process of the run calls it, with the same weights, or with
    a network of the same shapes if they come ``from_first``.

    ``blocks``: class names of the modules that gather their weights on their own; the rest of the network does it as a whole.
    ``frees_after_forward``: the gathered weights are freed between forward and backward pass.
    ``waits_on_host``: the parts of the weights, their gradients and their state stay in the memory of the host, and weights are gathered
    on ``device``.
    ``from_first``: all take the weights of the first process, and hold those of one block at a time.
    ``complete``: parameters that every process keeps, on ``device``. Their gradients are left to the caller.
    """
    mesh, kept = init_device_mesh(device.type, (processes,)), set(complete)
    for parameter in kept:
        parameter.data = parameter.data.to(device)
    place = CPUOffloadPolicy(pin_memory=device.type == "cuda") if waits_on_host else OffloadPolicy()
    spread: Any = partial(fully_shard, mesh=mesh, reshard_after_forward=frees_after_forward, offload_policy=place, ignored_params=kept)
    for module in [*(module for module in network.modules() if type(module).__name__ in blocks), network]:
        if from_first:
            _take_from_first(module, device)
        spread(module)
    # Pipelines ask a network for its device and make their latents there. It computes here, wherever its weights wait.
    cast("Any", type(network)).device = property(lambda _: device)


def _take_from_first(module: nn.Module, device: torch.device) -> None:
    """Bring what is not spread yet of a module onto its device, with the values and types that the first process has."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if not isinstance(tensor, DTensor)]
    types = [[tensor.dtype for tensor in tensors]]
    torch.distributed.broadcast_object_list(types, src=0)
    for tensor, dtype in zip(tensors, types[0], strict=True):
        tensor.data = tensor.data.to(device, dtype).contiguous()
        # As bytes, since not every backend sends every type.
        torch.distributed.broadcast(tensor.data.view(-1).view(torch.uint8), src=0)


def is_sharded(network: nn.Module) -> bool:
    """Whether ``shard`` has spread the weights of the network."""
    return isinstance(network, FSDPModule)


def devices_of_sharded(network: nn.Module) -> set[torch.device]:
    """Where a sharded network computes, which may be elsewhere than its parts of the weights are; nothing for another network."""
    return {cast("Any", network).device} if is_sharded(network) else set()


def any_sharded(parameters: Iterable[Tensor]) -> bool:
    """Whether this process has only a part of one of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in parameters)


@contextmanager
def without_exchange(network: nn.Module) -> Iterator[None]:
    """Backward passes in the block keep their gradients whole on each process; the next one outside adds and spreads them."""
    sharded = cast("FSDPModule", network)
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """The complete tensor, gathered if it is sharded. Every process has to call it for a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its rows if it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A complete tensor, sharded as the parameter that it belongs to. Others, such as counters, stay whole. Every process calls it."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements).to(parameter.device)


def sharded_as(part: Tensor, parameter: Tensor) -> Tensor:
    """The tensor of which each process has a part, as it has one of the parameter; the part itself if the parameter is not sharded."""
    if not isinstance(parameter, DTensor):
        return part
    place, shape, stride = (parameter.device_mesh, parameter.placements), parameter.shape, parameter.stride()
    return DTensor.from_local(part.to(parameter.device), *place, run_check=False, shape=shape, stride=stride)


def free_gathered(network: nn.Module) -> None:
    """Free the complete weights that a forward pass without a backward pass has left, so that the next one gathers them anew."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()

"""Splits the tokens of a sample over the processes of a group, by the plans that the networks of diffusers have for it.

Each process computes the blocks for its part of the tokens. Attention exchanges them, and the output is gathered on every process. A
gradient there is the contribution of the process's own tokens: those of a group add up to the gradient of the sample.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from trainer_engine.runtime.groups import Group

RING, ULYSSES = "ring", "ulysses"
"""Names that diffusers gives to the two ways of exchanging tokens, as dimensions of a mesh."""


def group_mesh(group: Group, device: torch.device, *, by_heads: bool) -> DeviceMesh:
    """The mesh of dimensions ``ring`` and ``ulysses`` of this process's group; one of the two has its size. Every process calls it."""
    shape = (group.count, 1, group.size) if by_heads else (group.count, group.size, 1)
    return init_device_mesh(device.type, shape, mesh_dim_names=("group", RING, ULYSSES))[RING, ULYSSES]


def split_tokens(network: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """Make the network compute its part of the tokens of each sample. ``mesh``: the one of the group, as ``group_mesh`` makes it.

    Takes the bare network, with its adapter. Its inputs have to be the same on every process of the group, and its output is. The token
    numbers have to be multiples of the group's size.

    NOTE: ``enable_parallelism`` of diffusers does the same, and refuses computers without an accelerator.
    """
    plan: dict[str, Any] | None = getattr(network, "_cp_plan", None)
    assert plan is not None, "the rules refuse families whose network has no plan"
    parallel = _exchange(mesh, device)
    for module in network.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = parallel
    assert parallel.context_parallel_config is not None
    apply_context_parallel(network, parallel.context_parallel_config, plan)


def _exchange(mesh: DeviceMesh, device: torch.device) -> ParallelConfig:
    """What diffusers needs to know about the group of this process."""
    exchange = ContextParallelConfig(ring_degree=mesh[RING].size(), ulysses_degree=mesh[ULYSSES].size(), mesh=mesh)
    parallel = ParallelConfig(context_parallel_config=exchange)
    parallel.setup(torch.distributed.get_rank(), torch.distributed.get_world_size(), device, mesh=mesh)
    return parallel

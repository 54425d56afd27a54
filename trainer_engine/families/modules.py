"""The modules of a run: what networks of the libraries offer, several trained components as one, and the bare network in its wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from trainer_engine.config.family_spec import FamilySpec


class DiffusersNetwork(Protocol):
    """What a network of diffusers or transformers offers in addition to ``nn.Module``."""

    config: Any
    """Its constructor's arguments, by name."""

    def save_pretrained(self, folder: Path, *, safe_serialization: bool, max_shard_size: str, **more: Any) -> None: ...


class JointNetwork(nn.ModuleDict):
    """Several trained components as one module, for optimizers, data parallelism and compilation."""

    def forward(self, component: str, *args: Any, **kwargs: Any) -> Any:
        """The output of one component."""
        return self[component](*args, **kwargs)


def join(modules: Mapping[str, nn.Module]) -> nn.Module:
    """The network of a run: the only trained component itself, or several as one module."""
    return JointNetwork(modules) if len(modules) > 1 else next(iter(modules.values()))


def split(network: nn.Module, spec: FamilySpec) -> dict[str, nn.Module]:
    """The trained components by name, from the bare network that ``join`` made."""
    prefixes = {name: spec.module_prefix(name) for name in spec.trained}
    return {name: network.get_submodule(prefix.removesuffix(".")) for name, prefix in prefixes.items()}


def unwrap(network: nn.Module) -> nn.Module:
    """The bare network inside data-parallel and compiled wrappers."""
    while True:
        inner = getattr(network, "_orig_mod", None) or getattr(network, "module", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Give everything that is saved of a module one type. Tables that are computed, such as the angles of positions, keep theirs: rounded
    to bfloat16, the angle of a distant position is wrong by up to a quarter of a radian."""
    for tensor in module.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def unmap_weights(module: nn.Module) -> None:
    """Give weights on the host that lie in a mapped file memory of their own. Quantised ones have it.

    Kernels of a CPU add in another order where a matrix begins at another address, and those in a file begin behind its header: without
    this, the last bit of a step depends on which file the weights were read from, that of the base model or that of a checkpoint.
    """
    for tensor in module.state_dict(keep_vars=True).values():
        if tensor.device.type == "cpu" and type(tensor.data) is torch.Tensor:
            tensor.data = tensor.data.clone()


def free_device_memory(device: torch.device) -> None:
    """Hand cached blocks of the allocator back after weights have gone."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""Counts the bytes of all tensors that live while code runs, to the byte, whatever the allocator keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Notes the storage of every tensor that an operator returns, and takes it off when the storage is freed."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """``held``: tensors that exist already and count from the start."""
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()
        for tensor in held:
            self._note(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: Tensor) -> None:
        for plain in plain_tensors(tensor):
            storage = plain.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known and plain.device.type != "meta":
                self._known.add(key)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensors that a tensor of a library consists of, or the tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module, after everything that is unreachable has been freed."""
    gc.collect()
    return [
        *(parameter.detach() if type(parameter.data) is Tensor else parameter.data for parameter in module.parameters()),
        *module.buffers(),
    ]


def peak_of(step: Any, held: Iterable[Tensor], *, warm_up: int = 1, steps: int = 2) -> int:
    """Peak bytes of ``step()``. The first calls create the optimizer's state and count as well."""
    with LiveBytes(held) as live:
        for _ in range(warm_up + steps):
            step()
    assert isinstance(live, LiveBytes)
    torch.set_grad_enabled(True)
    return live.peak

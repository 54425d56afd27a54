"""Keeps tensors that autograd saves for the backward pass in the memory of the host."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from trainer_engine.memory.transfers import HostPool, Transfers, Wait

SMALLEST_BYTES = 1024
"""Smaller tensors stay on the device: a copy has a fixed cost."""


@dataclass(eq=False)
class HostTensor:
    """A tensor whose numbers are in the memory of the host."""

    like: Tensor
    """Its type and shape, without numbers and with its dimensions in the order in which they lie in memory."""
    order: tuple[int, ...]
    """The dimensions of the tensor in that order: a function that is computed again may take another way for other strides."""
    previous: Callable[[], HostTensor | None]
    """The tensor that was saved before it; the backward pass needs that one next."""
    host: Tensor | None = None
    fetched: tuple[Tensor, Wait] | None = None


class SavedOnHost:
    """Copies saved tensors to the host in the forward pass and back in the backward pass."""

    def __init__(self, transfers: Transfers, *, prefetch: bool, pinned_sizes: int) -> None:
        """``prefetch``: copies a tensor back while the one that was saved after it is in use. ``pinned_sizes``: ``HostPool.max_sizes``."""
        self._transfers = transfers
        self._prefetch = prefetch
        self._pool = HostPool(transfers, pinned_sizes)
        self._last: Callable[[], HostTensor | None] = _nothing

    def of(self, wanted: Callable[[Tensor], bool]) -> saved_tensors_hooks:
        """A context in which saved tensors for which ``wanted`` is true leave the device."""

        def pack(tensor: Tensor) -> Tensor | HostTensor:
            return self._to_host(tensor) if tensor.nbytes >= SMALLEST_BYTES and wanted(tensor) else tensor

        return saved_tensors_hooks(pack, self._unpack)

    def _to_host(self, tensor: Tensor) -> HostTensor:
        order = _order_in_memory(tensor)
        dense = tensor.detach().permute(order).contiguous()
        saved = HostTensor(torch.empty_like(dense, device="meta"), order, self._last)
        saved.host = self._pool.take(dense.nbytes, saved)
        self._transfers.copy(_as_bytes(dense), saved.host)
        self._last = weakref.ref(saved)
        return saved

    def _unpack(self, saved: Tensor | HostTensor) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        tensor, wait = saved.fetched or self._fetch(saved)
        saved.fetched = None
        before = saved.previous()
        if self._prefetch and before is not None and before.fetched is None:
            before.fetched = self._fetch(before)
        wait()
        return tensor.permute([saved.order.index(dimension) for dimension in range(tensor.ndim)])

    def _fetch(self, saved: HostTensor) -> tuple[Tensor, Wait]:
        assert saved.host is not None
        tensor = torch.empty_like(saved.like, device=self._transfers.device)
        return tensor, self._transfers.copy(saved.host, _as_bytes(tensor))


def _order_in_memory(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of a tensor, the one with the longest steps first; as they are if numbers stand for several elements."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda one: -strides[one])) if 0 not in strides else tuple(range(tensor.ndim))


def _as_bytes(dense: Tensor) -> Tensor:
    """The memory of a contiguous tensor as (bytes,) uint8."""
    return dense.view(-1).view(torch.uint8)


def _nothing() -> None:
    """There is no tensor before the first."""

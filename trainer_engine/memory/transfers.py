"""Copies between the device and the memory of the host, on a stream of their own where the device has streams."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Wait = Callable[[], None]
"""Makes the work that is queued from now on wait for a copy."""


class Transfers:
    """Copies on a device without streams: a copy is complete when the call returns."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def host_bytes(self, size: int, *, pinned: bool = True) -> Tensor:
        """Uninitialised memory of the host, (size,) uint8. ``pinned``: the device can read it by itself."""
        return torch.empty(size, dtype=torch.uint8)

    def device_bytes(self, size: int) -> Tensor:
        """Uninitialised memory of the device, (size,) uint8."""
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def copy(self, source: Tensor, target: Tensor) -> Wait:
        """Starts to copy ``source`` into ``target`` after all work that is queued so far. Copies stay in the order of the calls."""
        target.copy_(source)
        return _no_wait

    def finish(self) -> None:
        """Blocks until the host may read what was copied to it."""


class CudaTransfers(Transfers):
    """Copies on a stream of their own, so that they overlap with the computation."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)

    def host_bytes(self, size: int, *, pinned: bool = True) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)

    def copy(self, source: Tensor, target: Tensor) -> Wait:
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            copied = self._stream.record_event()
        for tensor in (source, target):
            if tensor.is_cuda:
                tensor.record_stream(self._stream)
        return lambda: torch.cuda.current_stream(self.device).wait_event(copied)

    def finish(self) -> None:
        self._stream.synchronize()


def _no_wait() -> None:
    """Nothing: the copy is complete."""


def transfers_of(device: torch.device) -> Transfers:
    """Returns the copies that suit a device."""
    return CudaTransfers(device) if device.type == "cuda" else Transfers(device)


@dataclass
class HostPool:
    """Memory of the host that is used again for tensors of the same size, because pinning memory takes longer than a copy."""

    transfers: Transfers
    max_sizes: int
    """How many different sizes are pinned and kept. Memory of further sizes is neither."""
    _free: dict[int, list[Tensor]] = field(default_factory=dict)

    def take(self, size: int, owner: object) -> Tensor:
        """Returns memory of ``size`` bytes. It returns to the pool when ``owner`` is no longer referenced."""
        if size not in self._free and len(self._free) >= self.max_sizes:
            return self.transfers.host_bytes(size, pinned=False)
        free = self._free.setdefault(size, [])
        found = free.pop() if free else self.transfers.host_bytes(size)
        weakref.finalize(owner, free.append, found)
        return found

"""Copies of tensors in host memory, taken at once, so that training may go on while they are written."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import psutil
import torch
from torch import Tensor

from trainer_engine.checkpointing.cgroups import memory_left
from trainer_engine.runtime.sharding import whole

Copy = Callable[[Tensor], Tensor]
SPARE_BYTES = 1 << 30
"""Of host memory, left to everything else."""


def room_for(size: int) -> bool:
    """Whether copies of ``size`` bytes fit into the host's memory, and into what this process may have of it.

    Memory that is pinned for a GPU is handed out in powers of two.
    """
    needed = 2 * size if torch.cuda.is_available() else size
    available: int = psutil.virtual_memory().available
    return min(available, memory_left()) >= needed + SPARE_BYTES


def as_it_is(tensor: Tensor) -> Tensor:
    """No copy: where nothing changes the tensor before it is written."""
    return tensor


class HostCopies:
    """Copies tensors to host memory. The copies are complete at the end of the block; until then a GPU may still write them.

    Sharded tensors are gathered, so that every process has to copy them. ``keeps`` is false where only another process needs the copies.
    """

    def __init__(self, *, keeps: bool = True) -> None:
        self._keeps = keeps
        self._streams: set[torch.cuda.Stream] = set()

    def __call__(self, tensor: Tensor) -> Tensor:
        tensor = whole(tensor.detach())
        if not self._keeps:
            return tensor.to("meta")
        if tensor.device.type == "cpu":
            return tensor.clone()
        if tensor.device.type != "cuda":
            return tensor.cpu()
        self._streams.add(torch.cuda.current_stream(tensor.device))
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def __enter__(self) -> HostCopies:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in self._streams:
            stream.synchronize()

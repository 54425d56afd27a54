"""The processes of a run: one, or several that act as one. Everything that they say to one another is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn

from trainer_engine.contract.errors import InvalidOptions, Problem
from trainer_engine.runtime.environment import Environment

T = TypeVar("T")
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
LONGEST_WAIT = timedelta(days=7)
"""The first process fills the caches while the others wait."""


class Processes:
    """This process among those of the run."""

    def __init__(self, environment: Environment) -> None:
        """Joins the others. Raises InvalidOptions where accelerate was told to spread the run in a way that has no code here."""
        self.accelerator = Accelerator(
            cpu=environment.use_cpu,
            mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
        )
        if self.accelerator.distributed_type not in SUPPORTED:
            kind = self.accelerator.distributed_type.value
            message = f"Spreading a run by {kind} is known, not available yet."
            raise InvalidOptions([Problem.error("accelerate_config", "not_available", message, got=kind, expected="data parallelism")])
        # Words between the processes go over the network of the hosts, so that no GPU ever waits for them.
        self._words = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT) if self.count > 1 else None

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def count(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_first(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def share_network(self, network: nn.Module, *, may_skip: bool = False) -> nn.Module:
        """The network with gradients averaged over all processes. ``may_skip``: a pass may leave parameters without a gradient."""
        if self.count == 1:
            return network
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=device_ids, gradient_as_bucket_view=True, forward_sync_buffers=False, find_unused_parameters=may_skip
        )

    def without_exchange(self, network: nn.Module) -> AbstractContextManager[None]:
        """Backward passes in the block keep their gradients to themselves: only the last pass of a step exchanges them."""
        return network.no_sync() if isinstance(network, nn.parallel.DistributedDataParallel) else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag that is up on at least one process."""
        if self._words is None:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(counts, group=self._words)
        return [bool(count) for count in counts]

    def gather(self, mine: bytes) -> list[bytes]:
        """What each process hands in, by rank, on all of them; it waits for the last."""
        if self._words is None:
            return [mine]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        torch.distributed.all_gather(sizes, torch.tensor([len(mine)]), group=self._words)
        padded = torch.zeros(max(1, *(int(size) for size in sizes)), dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if mine else 0
        found = [torch.empty_like(padded) for _ in range(self.count)]
        torch.distributed.all_gather(found, padded, group=self._words)
        return [bytes(one[: int(size)].numpy()) for one, size in zip(found, sizes, strict=True)]

    def wait(self) -> None:
        """Until every process has come here."""
        if self._words is not None:
            torch.distributed.barrier(group=self._words)

    @contextmanager
    def first_alone(self) -> Iterator[bool]:
        """The first process does the block while the others wait at its end."""
        yield self.is_first
        self.wait()

    def first_then_others(self, work: Callable[[], T]) -> T:
        """The first process does the work, then all others do it, finding what it left on disk."""
        if self.is_first:
            result = work()
            self.wait()
            return result
        self.wait()
        return work()

    def leave(self) -> None:
        """Let go of the others."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

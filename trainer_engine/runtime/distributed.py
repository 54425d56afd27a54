"""The processes of a run, one or several, and all communication between them."""

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
from trainer_engine.runtime.environment import LaunchEnvironment
from trainer_engine.runtime.groups import make_group
from trainer_engine.runtime.sharding import any_sharded, is_sharded, without_exchange
from trainer_engine.weights.quantised.layer import QuantisedLinear

T = TypeVar("T")
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
BOTH_BACKENDS = "cuda:nccl,cpu:gloo"
LONGEST_WAIT = timedelta(days=7)
"""The other processes wait while the first one fills the caches."""


class Processes:
    """This process and its connection to the other processes of the run."""

    def __init__(
        self, environment: LaunchEnvironment, group_size: int = 1, *, in_step: bool = False, sends_from_host: bool = False
    ) -> None:
        """Connect to the other processes. Raises InvalidOptions if accelerate is configured for anything but data parallelism.

        ``group_size``: processes that work on one sample together. If their number is no multiple of it, each one works alone.
        ``in_step``: all processes have to call the network together, also where they do not train.
        ``sends_from_host``: tensors in the memory of the host are exchanged too, and not only those on GPUs.
        """
        on_gpu = torch.cuda.is_available() and not environment.use_cpu
        backend = {"backend": BOTH_BACKENDS} if sends_from_host and on_gpu else {}
        self.accelerator = Accelerator(
            cpu=environment.use_cpu,
            mixed_precision="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT, **backend)],
        )
        if self.accelerator.distributed_type not in SUPPORTED:
            kind = self.accelerator.distributed_type.value
            message = f"Training distributed by {kind} is not available yet."
            raise InvalidOptions([Problem.error("accelerate_config", "not_available", message, got=kind, expected="data parallelism")])
        # Control messages go over a gloo group on the CPU, so that no GPU waits for them.
        self._control = torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT) if self.count > 1 else None
        self.group = make_group(self.rank, self.count, 1 if self.count % group_size else group_size, LONGEST_WAIT)
        """The processes that take the same samples."""
        self.together = make_group(self.rank, self.count, self.count, LONGEST_WAIT) if in_step and self.count > 1 else self.group
        """The processes that evaluate a network and generate images together."""

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
        """Wrap the network so that gradients are averaged over all processes. Sharded parameters that are trained do that on their own.

        ``may_skip``: a backward pass may leave parameters without a gradient.
        """
        parameters = dict(network.named_parameters())
        if self.count == 1 or any_sharded(parameter for parameter in parameters.values() if parameter.requires_grad):
            return network
        # Buffers of quantised layers may be tensors that no backend can send, and every rank has made the same ones. Of sharded weights
        # each rank has another part.
        held = [
            f"{name}.{buffer}"
            for name, layer in network.named_modules()
            if isinstance(layer, QuantisedLinear)
            for buffer, _ in layer.named_buffers(recurse=False)
        ]
        held += [name for name, parameter in parameters.items() if any_sharded([parameter])]
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, held)
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            network, device_ids=device_ids, gradient_as_bucket_view=True, forward_sync_buffers=False, find_unused_parameters=may_skip
        )

    def without_exchange(self, network: nn.Module) -> AbstractContextManager[None]:
        """A context for backward passes that do not exchange gradients; only the last micro-batch of a step exchanges them."""
        if isinstance(network, nn.parallel.DistributedDataParallel):
            return network.no_sync()
        return without_exchange(network) if is_sharded(network) else nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """Add a tensor element-wise over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(values)
        return values

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag, whether it is true on at least one process."""
        if self._control is None:
            return list(flags)
        counts = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(counts, group=self._control)
        return [bool(count) for count in counts]

    def gather(self, mine: bytes) -> list[bytes]:
        """Collect the bytes of every process, in order of rank, on all processes. Blocks until each has called it."""
        if self._control is None:
            return [mine]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        torch.distributed.all_gather(sizes, torch.tensor([len(mine)]), group=self._control)
        padded = torch.zeros(max(1, *(int(size) for size in sizes)), dtype=torch.uint8)
        padded[: len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8) if mine else 0
        found = [torch.empty_like(padded) for _ in range(self.count)]
        torch.distributed.all_gather(found, padded, group=self._control)
        return [bytes(one[: int(size)].numpy()) for one, size in zip(found, sizes, strict=True)]

    def wait(self) -> None:
        """Block until every process has called it."""
        if self._control is not None:
            torch.distributed.barrier(group=self._control)

    @contextmanager
    def first_alone(self) -> Iterator[bool]:
        """Yields whether this is the first process; at the end of the block all processes wait for each other."""
        yield self.is_first
        self.wait()

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the first process, then on the others, which find the files that the first one left on disk."""
        if self.is_first:
            result = work()
            self.wait()
            return result
        self.wait()
        return work()

    def leave(self) -> None:
        """Leave the process group."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

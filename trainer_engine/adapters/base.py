"""What a run asks of the part of its network that learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from trainer_engine.checkpointing.snapshot import Copy
from trainer_engine.contract.checkpoint_files import ADAPTER_FILE, LYCORIS_FILE

__all__ = ["ADAPTER_FILE", "LYCORIS_FILE", "Trainable"]


class Trainable(ABC):
    """The part of a network that learns, in its place in the network."""

    may_skip: bool = False
    """Whether a pass may leave some parameters out, so that they get no gradient."""
    results: Mapping[str, str]
    """What ``write_result`` leaves in the output folder: name -> path; those of the moving average end in ``_ema``."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        """The bare network of the run, with the adapter in it."""

    @property
    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Those that learn, in the optimizer's order."""
        return [(name, parameter) for name, parameter in self.network.named_parameters() if parameter.requires_grad]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.named_parameters]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters]

    @property
    def size_bytes(self) -> int:
        """What ``save`` writes, about."""
        return sum(parameter.nbytes for parameter in self.parameters)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained weights into the folder of a checkpoint, exactly as they are."""

    @abstractmethod
    def snapshot(self, copy: Copy) -> Callable[[Path], None]:
        """What saves all that learns as it is now, of the tensors that ``copy`` gives: the same bytes as ``save``, whenever it is called.

        It may be called in another thread, while the network is being trained.
        """

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Take over what ``save`` wrote. Raises CheckpointUnusable where it is of another network or adapter."""

    @abstractmethod
    def write_result(self, output_dir: Path, step: int, *, averaged: bool = False) -> None:
        """What people use, each file whole or not there. ``averaged``: the weights in place are the moving average.

        Raises ModelUnavailable, DiskFull.
        """

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """The network with ``strength`` times what an adapter does to it, for the length of the block; 0 is the base model."""
        yield

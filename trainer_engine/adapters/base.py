"""The interface of what a run trains: all weights of a network, or an adapter in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from trainer_engine.checkpointing.snapshot import Copy
from trainer_engine.contract.checkpoint_files import ADAPTER_FILE, LYCORIS_FILE
from trainer_engine.runtime.reproducibility import preserve_training_state
from trainer_engine.runtime.sharding import any_sharded

__all__ = ["ADAPTER_FILE", "LYCORIS_FILE", "Trainable"]


class Trainable(ABC):
    """The trained parameters of a network, and how they are saved and loaded."""

    may_skip: bool = False
    """Whether a micro-batch may leave some parameters out, so that they get no gradient."""
    results: Mapping[str, str]
    """What ``write_result`` leaves in the output folder: name -> path; those of the moving average end in ``_ema``."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        """The bare network of the run, with the adapter in it."""
        self.unsharded: Sequence[nn.Parameter] = ()
        """Parameters that every process keeps complete if the weights of the network are spread over several (FSDP)."""
        self.comment: Callable[[], str] = str
        """Gives the comment that is written into the header of files now; an empty text for none."""

    @property
    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters in the optimizer's order."""
        return [(name, parameter) for name, parameter in self.network.named_parameters() if parameter.requires_grad]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.named_parameters]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named_parameters]

    @property
    def is_sharded(self) -> bool:
        """Whether this process has only a part of the trained parameters, so that every process takes part in saving them."""
        return any_sharded(self.parameters)

    def parameter_groups(self, text_encoders: Sequence[str]) -> list[list[nn.Parameter]]:
        """The trained parameters, and those of text encoders, if any are trained, as a second group.

        ``text_encoders``: their prefixes in the network, which has them last.
        """
        named, prefixes = self.named_parameters, tuple(text_encoders)
        groups = [[parameter for name, parameter in named if name.startswith(prefixes) is of_text] for of_text in (False, True)]
        return groups if prefixes else groups[:1]

    @property
    def size_bytes(self) -> int:
        """Approximate size of what ``save`` writes."""
        return sum(parameter.nbytes for parameter in self.parameters)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the trained weights into the folder of a checkpoint, exactly as they are."""

    @abstractmethod
    def snapshot(self, copy: Copy) -> Callable[[Path], None]:
        """A function that saves the parameters as they are now, from the tensors that ``copy`` returns, with the same bytes as ``save``.

        It may be called in another thread, while the network is being trained.
        """

    @abstractmethod
    def restore(self, folder: Path) -> None:
        """Load what ``save`` wrote. Raises CheckpointUnusable if it belongs to another network or adapter."""

    @abstractmethod
    def write_result(self, output_dir: Path, step: int, *, averaged: bool = False) -> None:
        """Write the files that people use, each atomically. ``averaged``: the weights in place are the moving average.

        Raises ModelUnavailable, DiskFull.
        """

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """The network without its adapter inside the block, for predictions: without gradients and dropout. Everything that the block
        changes is restored, random states included."""
        with preserve_training_state(self.network), self.at_strength(0.0):
            yield self.network.eval()

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """Scale the change of an adapter by ``strength`` inside the block; 0 is the base model."""
        yield

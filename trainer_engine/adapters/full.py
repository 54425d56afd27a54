"""Every weight of the trained components learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from trainer_engine.adapters.base import Trainable
from trainer_engine.checkpointing.snapshot import Copy, HostCopies
from trainer_engine.config.controlnet import FOLDER
from trainer_engine.families.base import Family
from trainer_engine.families.common.controlnet import write_controlnet
from trainer_engine.results.comment import write_comment

PIPELINE = "pipeline"
AVERAGED_PIPELINE = "pipeline_ema"
AVERAGED_CONTROLNET = "controlnet_ema"


class Full(Trainable):
    """The result is a pipeline, or a ControlNet, that diffusers loads as it is."""

    results: Mapping[str, str] = MappingProxyType({"pipeline": PIPELINE, "pipeline_ema": AVERAGED_PIPELINE})

    def __init__(self, family: Family, network: nn.Module) -> None:
        super().__init__(network)
        self.family = family
        if family.spec.steers:
            self.results = {FOLDER: FOLDER, f"{FOLDER}_ema": AVERAGED_CONTROLNET}

    def save(self, folder: Path) -> None:
        self._save(self.family.trained_modules(self.network), folder)

    def _save(self, modules: Mapping[str, nn.Module], folder: Path) -> None:
        """One subfolder for each component."""
        for name, module in modules.items():
            self.family.save_component(name, module, folder / self.family.components[name].folder)

    def snapshot(self, copy: Copy) -> Callable[[Path], None]:
        # NOTE: the twins are made here and not while they are written. Libraries that load a model change nn.Module for the whole process
        # as they do, so that one which is put together in another thread then gets parameters without data.
        twins = {
            name: twin_of(module, {key: copy(tensor) for key, tensor in module.state_dict().items()})
            for name, module in self.family.trained_modules(self.network).items()
        }
        return lambda folder: self._save(twins, folder)

    def restore(self, folder: Path) -> None:
        """Nothing: the network was loaded from the checkpoint."""

    def write_result(self, output_dir: Path, step: int, *, averaged: bool = False) -> None:
        if self.family.spec.steers:
            folder = output_dir / (AVERAGED_CONTROLNET if averaged else FOLDER)
            write_controlnet(self.family, folder, self.network)
            write_comment(folder, self.comment())
            return
        network = self._gathered() if self.is_sharded else self.network
        if network is None:
            return
        folder = output_dir / (AVERAGED_PIPELINE if averaged else PIPELINE)
        self.family.save_pipeline(folder, network)
        for component in self.family.spec.trained.values():
            write_comment(folder / component.folder, self.comment())

    def _gathered(self) -> nn.Module | None:
        """A network with the complete weights in host memory. None on other processes than the first; every one has to call it."""
        is_first = torch.distributed.get_rank() == 0
        with HostCopies(keeps=is_first) as copy:
            tensors = {key: copy(tensor) for key, tensor in self.network.state_dict().items()}
        return twin_of(self.network, tensors) if is_first else None


def twin_of(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A network of the same configuration that holds these tensors, not copies of them, so that the library's own writer saves it.

    Takes a network of diffusers or transformers.
    """
    cls: Any = type(network)
    make = getattr(cls, "from_config", None) or cls  # only diffusers has ``from_config`` on its classes of networks
    with torch.device("meta"):
        twin: nn.Module = make(network.config)
    twin.load_state_dict(tensors, assign=True)
    return twin

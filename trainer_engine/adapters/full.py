"""Every weight of the network learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from trainer_engine.adapters.base import Trainable
from trainer_engine.checkpointing.snapshot import Copy
from trainer_engine.families.base import Family

PIPELINE = "pipeline"
AVERAGED_PIPELINE = "pipeline_ema"


class Full(Trainable):
    """The result is a pipeline that diffusers loads as it is."""

    results: Mapping[str, str] = MappingProxyType({"pipeline": PIPELINE, "pipeline_ema": AVERAGED_PIPELINE})

    def __init__(self, family: Family, network: nn.Module) -> None:
        super().__init__(network)
        self.family = family
        self.folder = family.denoiser_folder

    def save(self, folder: Path) -> None:
        self.family.save_denoiser(self.network, folder)

    def snapshot(self, copy: Copy) -> Callable[[Path], None]:
        # NOTE: the twin is made here and not while it is written. Libraries that load a model change nn.Module for the whole process as
        # they do, so that one which is put together in another thread then gets parameters without data.
        twin = twin_of(self.network, {name: copy(tensor) for name, tensor in self.network.state_dict().items()})
        return lambda folder: self.family.save_denoiser(twin, folder)

    def restore(self, folder: Path) -> None:
        """Nothing: the network was loaded from the checkpoint."""

    def write_result(self, output_dir: Path, step: int, *, averaged: bool = False) -> None:
        self.family.save_pipeline(output_dir / (AVERAGED_PIPELINE if averaged else PIPELINE), self.network)


def twin_of(network: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A network of the same configuration that holds these tensors, not copies of them, so that the library's own writer saves it."""
    assert isinstance(network, ModelMixin)
    with torch.device("meta"):
        twin: nn.Module = type(network).from_config(network.config)
    twin.load_state_dict(tensors, assign=True)
    return twin

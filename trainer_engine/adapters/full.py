"""Every weight of the network learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from torch import nn

from trainer_engine.adapters.base import Trainable
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

    def restore(self, folder: Path) -> None:
        """Nothing: the network was loaded from the checkpoint."""

    def write_result(self, output_dir: Path, step: int, *, averaged: bool = False) -> None:
        self.family.save_pipeline(output_dir / (AVERAGED_PIPELINE if averaged else PIPELINE), self.network)

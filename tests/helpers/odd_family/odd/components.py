"""The components of the odd family are those of a Wan, with two networks of another architecture."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SanaVideoTransformer3DModel
from trainer_engine.families.odd.spec import SPEC

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.wan.components import WanComponents
from trainer_engine.weights.loading import PartFinder, load_diffusers, part_in


class OddComponents(WanComponents):
    """Two networks in place of one."""

    def __init__(self, options: ModelOptions) -> None:
        PartFinder.__init__(self, options, SPEC)

    def load_expert(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> SanaVideoTransformer3DModel:
        return load_diffusers(SanaVideoTransformer3DModel, part_in(folder) if folder else self.find(name), dtype)

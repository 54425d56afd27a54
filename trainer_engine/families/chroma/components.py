"""Finds and loads the components of a Chroma pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import ChromaTransformer2DModel

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.chroma.spec import SPEC
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.t5_text import T5PartFinder
from trainer_engine.weights.loading import load_diffusers, part_in


class ChromaComponents(T5PartFinder, FlowPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> ChromaTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(ChromaTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, ChromaTransformer2DModel)
        return network

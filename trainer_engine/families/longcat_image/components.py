"""Finds and loads the components of a LongCat-Image pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import LongCatImageTransformer2DModel

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.qwen_vl import VisionPartFinder
from trainer_engine.families.longcat_image.spec import PROCESSOR, SPEC
from trainer_engine.weights.loading import load_diffusers, part_in


class LongCatComponents(VisionPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> LongCatImageTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(LongCatImageTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, LongCatImageTransformer2DModel)
        return network

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it. One without references may lack the processor."""
        parts = {"vae": CopiedPart("diffusers", "AutoencoderKL", self.find("vae"), lambda: self.load_vae(None)), **self.copied_text()}
        processor = self.find_if_present(PROCESSOR)
        if processor is not None:
            parts[PROCESSOR] = CopiedPart("transformers", "Qwen2VLProcessor", processor, self.load_image_processor, is_text=True)
        return parts

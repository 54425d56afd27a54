"""Finds and loads the components of a Qwen-Image pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.common.qwen_vl import VisionPartFinder
from trainer_engine.families.qwen_image.spec import CLEAN_REFERENCES, SPEC
from trainer_engine.weights.loading import load_diffusers, part_in


class QwenImageComponents(VisionPartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> QwenImageTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(QwenImageTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, QwenImageTransformer2DModel)
        if self.options.model_flavour in CLEAN_REFERENCES and not network.config.zero_cond_t:
            network.register_to_config(zero_cond_t=True)  # it changes no weight
            for module in (network, *network.transformer_blocks):
                module.zero_cond_t = True
        return network

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        vae = CopiedPart("diffusers", "AutoencoderKLQwenImage", self.find("vae"), lambda: self.load_frame_vae(None))
        parts = {"vae": vae, **self.copied_text()}
        if self.edits:
            name, load = "Qwen2VLProcessor", self.load_image_processor
            parts["processor"] = CopiedPart("transformers", name, self.find("processor"), load, is_text=True)
        return parts

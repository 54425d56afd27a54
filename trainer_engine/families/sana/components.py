"""Finds and loads the components of a Sana pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import SanaTransformer2DModel, SchedulerMixin
from transformers import Gemma2Model, GemmaTokenizer, PreTrainedTokenizerBase

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.common.deep_autoencoder import load_deep_vae
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.sana.spec import SPEC
from trainer_engine.weights.loading import PartFinder, load_diffusers, load_text_encoder, load_tokenizer, make_scheduler, part_in


class SanaParts(PartFinder):
    """The components of the pipeline."""

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> SanaTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights. Raises ModelUnavailable."""
        network = load_diffusers(SanaTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, SanaTransformer2DModel)
        return network

    def load_text_encoder(self, dtype: torch.dtype) -> Gemma2Model:
        """Frozen, on the CPU. Raises ModelUnavailable."""
        encoder = load_text_encoder(Gemma2Model, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Gemma2Model)
        return encoder

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises ModelUnavailable. It pads on the right, as the pipeline asks for it, whatever its files say."""
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(GemmaTokenizer, self.find("tokenizer"))
        tokenizer.padding_side = "right"
        return tokenizer

    def make_scheduler(self, sampler: str | None = None) -> SchedulerMixin:
        """The base model's own sampler, or the named one, with the base model's shift. Raises ModelUnavailable."""
        config: dict[str, Any] = self.scheduler_config()
        if sampler is None:
            return make_scheduler(config, str(config.get("_class_name")), {}, self.base.name)
        name, settings = SAMPLERS[sampler]
        shift = float(config.get("flow_shift") or config.get("shift") or 1.0)
        return make_scheduler(config, name, {**settings, "flow_shift" if settings else "shift": shift}, self.base.name)

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_text_encoder(torch.bfloat16)
        return {
            "vae": CopiedPart("diffusers", "AutoencoderDC", find("vae"), lambda: load_deep_vae(self, None)),
            "text_encoder": CopiedPart("transformers", "Gemma2Model", find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "GemmaTokenizer", find("tokenizer"), self.load_tokenizer, is_text=True),
        }

"""What families of flow matching share whose network is the ``transformer`` of a pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor, nn

from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import plan_of, write_pipeline


class FlowFamily(Family):
    """Generates with the pipeline of diffusers from embeddings, and leaves its folder."""

    parts: FlowPartFinder
    autoencoder: Autoencoder

    def load_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> nn.Module:
        network: nn.Module = self.parts.load_transformer(dtype, folder)
        return network

    @property
    def pipeline_class(self) -> type[Any]:
        """The class that generates: that of the weights, or one that takes what the family has computed already."""
        found: type[Any] = getattr(diffusers, self.pipeline_name)
        return found

    @property
    def pipeline_settings(self) -> Mapping[str, Any]:
        """Arguments of the pipeline that are no components."""
        return MappingProxyType({})

    @property
    def saved_settings(self) -> Mapping[str, Any]:
        """What the index of a saved pipeline states beside its components."""
        return self.pipeline_settings

    def pipeline_parts(self, network: nn.Module, sampler: str | None) -> dict[str, Any]:
        """The components of a pipeline by name, without text encoders and tokenizers."""
        networks = {**self.beside, **self.trained_modules(network)}
        return {**networks, "vae": self.autoencoder.model, "scheduler": self.parts.make_scheduler(sampler)}

    def make_pipeline(self, network: nn.Module, *, sampler: str | None = None, spacing: str | None = None) -> Any:
        """Without ``spacing``: the straight paths of flow matching are walked in even steps."""
        no_text = dict.fromkeys((*self.spec.prompts.text_encoder_folders, *self.spec.prompts.tokenizer_folders))
        pipeline = self.pipeline_class(**no_text, **self.pipeline_parts(network, sampler), **self.pipeline_settings)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def preview(self, latents: Tensor) -> Image.Image:
        return self.autoencoder.picture(latents)

    def save_pipeline(self, folder: Path, network: nn.Module) -> None:
        plan = plan_of(self, network, self.parts.copied(), self.parts.make_scheduler(), self.saved_settings)
        write_pipeline(folder, plan, self.options)

"""Finds and loads the components of an AuraFlow pipeline."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AuraFlowTransformer2DModel
from transformers import LlamaTokenizerFast, UMT5EncoderModel

from trainer_engine.config.options.model import ModelOptions
from trainer_engine.families.auraflow.spec import SPEC
from trainer_engine.families.common.flow_samplers import SAMPLERS as SAMPLERS
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.t5_text import T5PartFinder
from trainer_engine.weights.loading import load_diffusers, part_in


class AuraFlowComponents(T5PartFinder, FlowPartFinder):
    """The components of the pipeline. Pile T5 has the vocabulary of Llama."""

    encoder = UMT5EncoderModel
    tokenizer = LlamaTokenizerFast
    tokenizer_name = "LlamaTokenizerFast"

    def __init__(self, options: ModelOptions) -> None:
        super().__init__(options, SPEC)

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> AuraFlowTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        network = load_diffusers(AuraFlowTransformer2DModel, part_in(folder) if folder else self.find("transformer"), dtype)
        assert isinstance(network, AuraFlowTransformer2DModel)
        return network

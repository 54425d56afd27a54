"""The pipeline that a run leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from trainer_engine.families.common.pipeline_folder import Component, PipelinePlan
from trainer_engine.families.pixart_sigma.components import ComponentFinder
from trainer_engine.families.pixart_sigma.spec import SPEC


def pipeline_plan(parts: ComponentFinder, save_transformer: Callable[[Path], None], *, dtype: str, prediction_type: str) -> PipelinePlan:
    def save_vae(folder: Path) -> None:
        parts.load_vae(None).save_pretrained(folder, safe_serialization=True)

    def save_text_encoder(folder: Path) -> None:
        parts.load_text_encoder(torch.bfloat16).save_pretrained(folder)

    def save_tokenizer(folder: Path) -> None:
        parts.load_tokenizer().save_pretrained(folder)

    return PipelinePlan(
        spec=SPEC,
        pipeline="PixArtSigmaPipeline",
        base_model=parts.base.name,
        denoiser=("transformer", "PixArtTransformer2DModel"),
        save_denoiser=save_transformer,
        components={
            "vae": Component("diffusers", "AutoencoderKL", parts.find("vae"), save_vae),
            "text_encoder": Component("transformers", "T5EncoderModel", parts.find("text_encoder"), save_text_encoder, is_text=True),
            "tokenizer": Component("transformers", "T5Tokenizer", parts.find("tokenizer"), save_tokenizer, is_text=True),
        },
        scheduler=parts.make_scheduler(prediction_type),
        dtype=dtype,
        objective=prediction_type,
    )

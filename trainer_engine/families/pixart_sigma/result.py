"""The pipeline that a run leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from trainer_engine.families.common.pipeline_folder import CopiedPart, PipelinePlan, TrainedPart
from trainer_engine.families.pixart_sigma.components import PixArtParts
from trainer_engine.families.pixart_sigma.spec import SPEC


def pipeline_plan(parts: PixArtParts, trained: Mapping[str, TrainedPart], *, dtype: str, prediction_type: str) -> PipelinePlan:
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
        trained=trained,
        copied={
            "vae": CopiedPart("diffusers", "AutoencoderKL", parts.find("vae"), save_vae),
            "text_encoder": CopiedPart("transformers", "T5EncoderModel", parts.find("text_encoder"), save_text_encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", "T5Tokenizer", parts.find("tokenizer"), save_tokenizer, is_text=True),
        },
        scheduler=parts.make_scheduler(prediction_type),
        dtype=dtype,
        objective=prediction_type,
    )

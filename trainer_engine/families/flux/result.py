"""The pipeline that a full fine-tune leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from trainer_engine.families.common.pipeline_folder import CopiedPart, PipelinePlan, TrainedPart
from trainer_engine.families.flux.components import FluxParts
from trainer_engine.families.flux.spec import SPEC


def pipeline_plan(parts: FluxParts, trained: Mapping[str, TrainedPart], *, dtype: str, pipeline: str) -> PipelinePlan:
    def save_vae(folder: Path) -> None:
        parts.load_vae(None).save_pretrained(folder, safe_serialization=True)

    def save_clip(folder: Path) -> None:
        parts.load_clip(torch.bfloat16).save_pretrained(folder)

    def save_t5(folder: Path) -> None:
        parts.load_t5(torch.bfloat16).save_pretrained(folder)

    def save_tokenizer(number: int) -> Callable[[Path], None]:
        return lambda folder: parts.load_tokenizers()[number].save_pretrained(folder)

    copied = {
        "vae": CopiedPart("diffusers", "AutoencoderKL", parts.find("vae"), save_vae),
        "text_encoder": CopiedPart("transformers", "CLIPTextModel", parts.find("text_encoder"), save_clip, is_text=True),
        "tokenizer": CopiedPart("transformers", "CLIPTokenizer", parts.find("tokenizer"), save_tokenizer(0), is_text=True),
        "text_encoder_2": CopiedPart("transformers", "T5EncoderModel", parts.find("text_encoder_2"), save_t5, is_text=True),
        "tokenizer_2": CopiedPart("transformers", "T5TokenizerFast", parts.find("tokenizer_2"), save_tokenizer(1), is_text=True),
    }
    return PipelinePlan(
        spec=SPEC,
        pipeline=pipeline,
        base_model=parts.base.name,
        trained=trained,
        copied=copied,
        scheduler=parts.make_scheduler(),
        dtype=dtype,
        objective=SPEC.objective,
    )

"""The micro model of Kandinsky 5 for images, as a family and as the pipeline of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.helpers.models import tiny_model, tiny_of
from trainer_engine.families.kandinsky5_image.family import Kandinsky5Image

NAME, EDIT = "kandinsky5_image", "i2i-lite-sft"
PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


class WithoutVideos(Qwen2VLProcessor):  # type: ignore[misc]  # mypy does not read transformers' types
    """The processor of the pipeline without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def tiny_kandinsky(**values: Any) -> Kandinsky5Image:
    """The micro model on the CPU."""
    return tiny_of(Kandinsky5Image, tiny_model(NAME), **values)


def tiny_edit(**values: Any) -> Kandinsky5Image:
    """That of a flavour that edits."""
    return tiny_of(Kandinsky5Image, tiny_model(NAME, flavour=EDIT), model_flavour=EDIT, **values)


def pipeline_in(folder: Path, **parts: Any) -> Any:
    images, tokenizer = (kind.from_pretrained(folder / "tokenizer") for kind in (Qwen2VLImageProcessorPil, Qwen2Tokenizer))
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    pipeline = kind.from_pretrained(folder, tokenizer=WithoutVideos(images, tokenizer), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

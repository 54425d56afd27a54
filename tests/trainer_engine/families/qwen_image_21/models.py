"""The micro model of Qwen-Image 2.1, as a family and as the pipeline of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImage21Pipeline
from transformers import Qwen2Tokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.helpers.models import tiny_model, tiny_of
from trainer_engine.families.qwen_image_21.family import QwenImage21

NAME = "qwen_image_21"
PROMPTS = ["a red circle", "", "two small stars, three moons and a very bright sun behind the mountain"]
SIGMAS = torch.tensor([0.1, 0.5, 0.9])


class WithoutVideos(Qwen3VLProcessor):  # type: ignore[misc]  # mypy does not read transformers' types
    """The processor of the pipeline without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def tiny_qwen(**values: Any) -> QwenImage21:
    """The micro model on the CPU."""
    return tiny_of(QwenImage21, tiny_model(NAME), **values)


def pipeline_in(folder: Any) -> Any:
    images, tokenizer = (kind.from_pretrained(folder / "processor") for kind in (Qwen2VLImageProcessorPil, Qwen2Tokenizer))
    processor = WithoutVideos(images, tokenizer, chat_template=tokenizer.chat_template)
    pipeline = QwenImage21Pipeline.from_pretrained(folder, processor=processor)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

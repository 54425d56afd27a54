"""Prompts as the pipelines of Kandinsky 5 read them: Qwen2.5-VL in a conversation whose beginning is left out, and CLIP as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from diffusers.pipelines.kandinsky5.pipeline_kandinsky_i2i import prompt_clean
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLProcessor

from trainer_engine.families.common.references import picture_of
from trainer_engine.families.inputs import PromptEmbedding

POOLED = "pooled"
LARGEST_PX = 1024 * 1024
"""Area of the largest reference as Qwen2.5-VL is shown it, which the pipeline halves each way: that of the sizes that it generates."""


class PlainProcessor(Qwen2VLProcessor):  # type: ignore[misc]  # mypy does not read transformers' types
    """Qwen2.5-VL's processor without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


class PromptEncoder:
    """Asks the pipelines of diffusers, around text encoders that are loaded when they are first needed. Each prompt is read alone, so that
    nothing is padded."""

    def __init__(self, load: Callable[[], dict[str, Any]], device: torch.device, dtype: torch.dtype, token_limit: int) -> None:
        """``load``: text encoders and what prepares prompts for them, by their names in a pipeline. ``token_limit``: of the prompt, the
        reference and the end of the conversation."""
        self._load = load
        self._device = device
        self._dtype = dtype
        self._token_limit = token_limit
        self._loaded: dict[str, Any] | None = None

    def free(self) -> None:
        self._loaded = None

    def encode(self, prompt: str) -> PromptEmbedding:
        """``embeds`` (T, D) and ``pooled`` (P,) of a prompt on the CPU."""
        return self._encoded(self._pipeline(Kandinsky5T2IPipeline), prompt)

    def encode_with(self, prompt: str, reference: Tensor) -> PromptEmbedding:
        """The same of a prompt and the reference (3, H, W) in [-1, 1] behind it."""
        pipeline, image = self._pipeline(Kandinsky5I2IPipeline), _shown(reference)
        return self._encoded(pipeline, self._cut(pipeline, prompt, image), image=[image])

    def _pipeline(self, kind: type[Any]) -> Any:
        loaded = self._loaded  # another thread may drop it at any time
        if loaded is None:
            self._loaded = loaded = self._load()
        return kind(transformer=None, vae=None, scheduler=None, **loaded)

    @torch.no_grad()
    def _encoded(self, pipeline: Any, prompt: str, **seen: Any) -> PromptEmbedding:
        how = {"max_sequence_length": self._token_limit, "device": self._device, "dtype": self._dtype}
        embeds, pooled, _ = pipeline.encode_prompt(prompt, **seen, **how)
        return {"embeds": embeds[0].cpu(), POOLED: pooled[0].cpu()}

    def _cut(self, pipeline: Any, prompt: str, image: Image.Image) -> str:
        """The beginning of a prompt that fits beside an image.

        NOTE: the pipeline cuts the end of the conversation, in which the image has its place, and then fails.
        """
        processor = pipeline.tokenizer
        text: str = prompt_clean(prompt)
        small = image.resize((image.width // 2, image.height // 2))
        room = self._token_limit + pipeline.prompt_template_encode_start_idx

        def length() -> int:
            return len(processor(text=[pipeline.prompt_template.format(text)], images=[small])["input_ids"][0])

        while text and (excess := length() - room) > 0:
            ends = processor.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            text = text[: ends[-excess - 1][1]] if excess < len(ends) else ""
        return text


def _shown(reference: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an image of the same proportions and no more than ``LARGEST_PX``."""
    image = picture_of(reference)
    share = math.sqrt(LARGEST_PX / (image.width * image.height))
    if share >= 1:
        return image
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)


def encoded(encoder: PromptEncoder, prompts: Sequence[str], references: Sequence[Sequence[Tensor]]) -> list[PromptEmbedding]:
    """Every prompt with its reference, if it has one."""
    seen = references or [()] * len(prompts)
    return [encoder.encode_with(prompt, one[0]) if one else encoder.encode(prompt) for prompt, one in zip(prompts, seen, strict=True)]

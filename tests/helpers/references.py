"""Pictures of noise as references, and the processor of Qwen2.5-VL that shows them to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class WithoutVideos(Qwen2VLProcessor):  # type: ignore[misc]  # mypy does not read transformers' types
    """The processor of the pipelines without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def processor_in(folder: Path) -> WithoutVideos:
    """The processor in a subfolder of a pipeline."""
    images, tokenizer = (kind.from_pretrained(folder) for kind in (Qwen2VLImageProcessorPil, Qwen2Tokenizer))
    return WithoutVideos(images, tokenizer)


def tell_images(encoder: nn.Module) -> None:
    """Tell the text encoder of a pipeline which tokens are of images: diffusers does not pass on what the processor knows of it."""
    image = encoder.config.image_token_id  # type: ignore[union-attr]

    def with_kinds(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "mm_token_type_ids": (kwargs["input_ids"] == image).int()}

    encoder.register_forward_pre_hook(with_kinds, with_kwargs=True)


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Noise of (width, height) ``size``."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def pixels_of(image: Image.Image) -> Tensor:
    """(3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 127.5 - 1

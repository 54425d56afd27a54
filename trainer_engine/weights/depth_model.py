"""Estimates how near each point of an image is, with a model of the hub."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from trainer_engine.weights.hub import Source, find_model
from trainer_engine.weights.loading import load_text_encoder, load_tokenizer

ONCE = threading.Lock()
"""Threads that make maps at once share one model."""


@torch.no_grad()
def depth_map(image: Image.Image, repository: str) -> Image.Image:
    """A grey RGB image of the same size: the nearest point is white and the farthest black, whatever the unit of the model is.

    A plane at one distance is black. ``repository`` holds a depth model of the transformers library (Ranftl et al., 2021, "Vision
    Transformers for Dense Prediction", and others). It computes on the CPU in float32. Raises ModelUnavailable.
    """
    with ONCE:
        model, processor = _loaded(repository)
    estimated: Tensor = model(**processor(images=image, return_tensors="pt")).predicted_depth
    nearness = interpolate(estimated[None].float(), size=(image.height, image.width), mode="bicubic", align_corners=False)[0, 0]
    low, high = nearness.min(), nearness.max()
    levels = (nearness - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny) * 255
    return Image.fromarray(np.round(levels.numpy()).astype(np.uint8)).convert("RGB")


@lru_cache(maxsize=1)
def _loaded(repository: str) -> tuple[Any, Any]:
    """The model and its image processor."""
    part = find_model(Source(repository))
    return load_text_encoder(AutoModelForDepthEstimation, part, torch.float32), load_tokenizer(AutoImageProcessor, part)

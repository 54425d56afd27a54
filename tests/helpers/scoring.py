"""A small CLIP model for tests, and what it thinks of an image worked out another way."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from trainer_engine.tiny_models.text import make_tiny_clip


@cache
def tiny_clip() -> Path:
    """Treat the folder as read-only."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-clip-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_tiny_clip(folder / "model")


def score_by_hand(model: Path, image: Path, prompt: str) -> float:
    """From the two towers of the model alone, with the pixels and tokens that its processor makes."""
    clip, processor = CLIPModel.from_pretrained(model).eval(), CLIPProcessor.from_pretrained(model)
    tokens = processor.tokenizer(prompt)["input_ids"]
    tokens = tokens if len(tokens) <= 77 else [*tokens[:76], tokens[-1]]
    with torch.no_grad():
        pixels = processor.image_processor(Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
        seen = clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output)[0].double()
        read = clip.text_projection(clip.text_model(input_ids=torch.tensor([tokens])).pooler_output)[0].double()
    return max(0.0, 100 * float(seen @ read / (seen.norm() * read.norm())))

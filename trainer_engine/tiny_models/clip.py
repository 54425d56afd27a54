"""A CLIP of some thousand parameters with random weights, in the real Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from trainer_engine.tiny_models.clip_tokenizer import LONGEST, build_clip_tokenizer

EDGE_PX = 32
WIDTH = 32


def make_tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Write model and processor into ``folder`` and return it. The same seed gives the same bytes; the global random state stays."""
    tokenizer = build_clip_tokenizer()
    shared = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text = {**shared, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": LONGEST, "projection_dim": WIDTH}
    vision = {**shared, "image_size": EDGE_PX, "patch_size": EDGE_PX // 4, "projection_dim": WIDTH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    crop = {"height": EDGE_PX, "width": EDGE_PX}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": EDGE_PX}, crop_size=crop)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder)
    return folder

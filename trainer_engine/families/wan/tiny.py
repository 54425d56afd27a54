"""A small Wan in the real Hugging Face layout, with random weights: for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from trainer_engine.tiny_models.hub_cache import write_pipeline_folder
from trainer_engine.tiny_models.text import build_t5_tokenizer

TEXT_WIDTH = 32
FRAME_WIDTH, FRAME_PX = 16, 28
"""Width of the image encoder, and the edge of the images that it sees."""
ANIMATING = {"in_channels": 36, "out_channels": 16, "image_dim": FRAME_WIDTH, "added_kv_proj_dim": 24}


def make_tiny(folder: Path, *, seed: int = 0, animates: bool = False) -> Path:
    """Write the pipeline into ``folder`` and return it. The same seed gives the same bytes. The global random state is left alone.

    ``animates``: a model of the image-to-video flavours, which takes the first frame of a clip.
    """
    tokenizer = build_t5_tokenizer()
    text = UMT5Config(
        vocab_size=len(tokenizer), d_model=TEXT_WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "text_dim": TEXT_WIDTH, "freq_dim": 16, "ffn_dim": 32}
        transformer = WanTransformer3DModel(**sizes, num_layers=2, **(ANIMATING if animates else {}))
        vae = AutoencoderKLWan(base_dim=4, num_res_blocks=1)
        encoder = UMT5EncoderModel(text)
        looking = _image_encoder() if animates else {}
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    parts = {"transformer": transformer, "text_encoder": encoder, "tokenizer": tokenizer, "vae": vae, "scheduler": scheduler}
    # diffusers knows the class by the name that it has where torchvision is installed
    index = {"image_processor": ["transformers", "CLIPImageProcessor"]} if animates else {}
    write_pipeline_folder(folder, "WanImageToVideoPipeline" if animates else "WanPipeline", {**parts, **looking}, **index)
    return folder


def _image_encoder() -> dict[str, Any]:
    """What looks at the first frame, by subfolder."""
    config = CLIPVisionConfig(
        hidden_size=FRAME_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=FRAME_PX,
        patch_size=14,
        projection_dim=8,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": FRAME_PX}, crop_size={"height": FRAME_PX, "width": FRAME_PX})
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}

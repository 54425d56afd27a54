"""A small Flux.1 in the real Hugging Face layout: for tests, and for a look on a laptop.

``python -m trainer_engine.families.flux.tiny --size demo FOLDER``. The same seed gives the same bytes. Text encoders and transformer have
random weights; the autoencoder is built by hand so that it really shows what its latents hold.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from trainer_engine.tiny_models.text import CLIP_TOKENS, build_clip_tokenizer, build_t5_tokenizer

SHIFT_FACTOR = 0.1159
TEXT_LAYERS = 2


@dataclass(frozen=True)
class Size:
    """How much of a network to make."""

    heads: int
    axes: tuple[int, int, int]
    """Widths of the rotary embedding of image number, row and column; their sum is the width of a head."""
    blocks: int
    """Double blocks, and as many single ones."""
    text_width: int
    zero_output: bool
    """Whether the transformer starts by predicting zero, as a network that is to be trained from nothing should."""


SIZES = {
    "micro": Size(heads=2, axes=(4, 6, 6), blocks=2, text_width=32, zero_output=False),
    "demo": Size(heads=4, axes=(8, 12, 12), blocks=4, text_width=64, zero_output=True),
}


def make_tiny(folder: Path, *, size: str = "micro", flavour: str = "dev", seed: int = 0) -> Path:
    """Write the pipeline of a flavour into ``folder`` and return it. The global random state is left alone."""
    chosen = SIZES[size]
    tokenizer, tokenizer_2 = build_clip_tokenizer(), build_t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": _transformer(chosen, guided=flavour != "schnell"),
            "text_encoder": _clip(chosen, tokenizer),
            "text_encoder_2": _t5(chosen, len(tokenizer_2)),
            "vae": build_vae(16, shift=SHIFT_FACTOR, quant_convs=False),
        }
    for name, part in {**parts, "tokenizer": tokenizer, "tokenizer_2": tokenizer_2}.items():
        part.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=flavour != "schnell").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "FluxKontextPipeline" if flavour == "kontext" else "FluxPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def _transformer(size: Size, *, guided: bool) -> FluxTransformer2DModel:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=size.blocks,
        num_single_layers=size.blocks,
        attention_head_dim=sum(size.axes),
        num_attention_heads=size.heads,
        joint_attention_dim=size.text_width,
        pooled_projection_dim=size.text_width,
        guidance_embeds=guided,
        axes_dims_rope=size.axes,
    )
    if size.zero_output:
        nn.init.zeros_(network.proj_out.weight)
        nn.init.zeros_(network.proj_out.bias)
    return network


def _clip(size: Size, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_width,
        projection_dim=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=TEXT_LAYERS + 1,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _t5(size: Size, vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary,
        d_model=size.text_width,
        d_kv=8,
        d_ff=2 * size.text_width,
        num_layers=TEXT_LAYERS,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a small Flux.1 in the real layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="micro")
    parser.add_argument("--flavour", choices=("dev", "krea", "schnell", "kontext"), default="dev")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repo-id", help="also lay it out as a cached snapshot of this repository, under --hf-home")
    parser.add_argument("--hf-home", type=Path)
    arguments = parser.parse_args()
    if bool(arguments.repo_id) != bool(arguments.hf_home):
        parser.error("--repo-id and --hf-home belong together")
    print(make_tiny(arguments.folder, size=arguments.size, flavour=arguments.flavour, seed=arguments.seed))
    if arguments.repo_id:
        print(place_in_hub_cache(arguments.folder, arguments.repo_id, arguments.hf_home))


if __name__ == "__main__":
    main()

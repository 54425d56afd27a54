"""A small PixArt Sigma in the real Hugging Face layout: for tests, and for the demo on a laptop.

``python -m trainer_engine.families.pixart_sigma.tiny --size demo FOLDER``. The same seed gives the same bytes. The text encoder and
the transformer have random weights; the autoencoder is built by hand so that it really shows what its latents hold.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from trainer_engine.tiny_models.autoencoders import build_vae
from trainer_engine.tiny_models.hub_cache import place_in_hub_cache
from trainer_engine.tiny_models.text import build_t5_tokenizer


@dataclass(frozen=True)
class Size:
    """How much of a network to make."""

    heads: int
    head_width: int
    layers: int
    text_width: int
    text_layers: int
    zero_output: bool
    """Whether the transformer starts by predicting zero, as a network that is to be trained from nothing should."""


SIZES = {
    "micro": Size(heads=4, head_width=8, layers=2, text_width=32, text_layers=2, zero_output=False),
    "demo": Size(heads=6, head_width=32, layers=6, text_width=64, text_layers=2, zero_output=True),
}


def make_tiny(folder: Path, *, size: str = "micro", seed: int = 0, size_conditions: bool = False) -> Path:
    """Write the pipeline into ``folder`` and return it. ``micro`` has about 50 thousand parameters to train, ``demo`` 4 million.

    ``size_conditions`` builds the transformer of the older checkpoints, which take the image's size and aspect as inputs.
    The global random state is left alone.
    """
    chosen = SIZES[size]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = _transformer(chosen, size_conditions)
        tokenizer = build_t5_tokenizer()
        text_encoder = _text_encoder(chosen, len(tokenizer))
        vae = build_vae()
    transformer.save_pretrained(folder / "transformer")
    text_encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    vae.save_pretrained(folder / "vae")
    DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "PixArtSigmaPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def _transformer(size: Size, size_conditions: bool) -> PixArtTransformer2DModel:
    # The embedders of size and aspect take a third of the width each, the sines of the position a quarter.
    head_width = -(-size.head_width // 12) * 12 if size_conditions else size.head_width
    network = PixArtTransformer2DModel(
        num_attention_heads=size.heads,
        attention_head_dim=head_width,
        in_channels=4,
        out_channels=8,
        num_layers=size.layers,
        cross_attention_dim=size.heads * head_width,
        sample_size=32,
        patch_size=2,
        attention_bias=True,
        caption_channels=size.text_width,
        use_additional_conditions=size_conditions,
    )
    if size.zero_output:
        nn.init.zeros_(network.proj_out.weight)
        nn.init.zeros_(network.proj_out.bias)
    return network


def _text_encoder(size: Size, vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary,
        d_model=size.text_width,
        d_kv=8,
        d_ff=2 * size.text_width,
        num_layers=size.text_layers,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a small PixArt Sigma in the real layout.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SIZES), default="micro")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repo-id", help="also lay it out as a cached snapshot of this repository, under --hf-home")
    parser.add_argument("--hf-home", type=Path)
    arguments = parser.parse_args()
    if bool(arguments.repo_id) != bool(arguments.hf_home):
        parser.error("--repo-id and --hf-home belong together")
    print(make_tiny(arguments.folder, size=arguments.size, seed=arguments.seed))
    if arguments.repo_id:
        print(place_in_hub_cache(arguments.folder, arguments.repo_id, arguments.hf_home))


if __name__ == "__main__":
    main()

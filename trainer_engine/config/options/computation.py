"""Options of how networks are computed: the autoencoder's memory, and the attention of the trained network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trainer_engine.config.attention import DEFAULT, LATER, MECHANISMS, SYNONYMS
from trainer_engine.config.option import OptionGroup, option

if TYPE_CHECKING:
    Mechanism = str
else:
    Mechanism = Literal[tuple(MECHANISMS)]


class AutoencoderOptions(OptionGroup):
    """How the autoencoder saves memory, while images are cached, generated and previewed."""

    vae_enable_tiling: bool = option(
        False,
        "Encode and decode images that are larger than a tile of the autoencoder in tiles, whose edges are blended. The latents of such "
        "images differ a little, so cached latents are made again when this option changes.",
    )
    vae_enable_slicing: bool = option(False, "Encode and decode the images of a batch one after the other. The latents stay the same.")
    vae_enable_patch_conv: bool = option(
        False,
        "Compute the large convolutions of the autoencoder in strips of rows, each with the rows around it that it needs. Unlike with "
        "tiling, the latents stay the same up to rounding.",
    )
    vae_enable_temporal_roll: bool = option(
        False, "Take clips through the autoencoder some frames at a time, for the families whose autoencoder has a choice."
    )


class AttentionOptions(OptionGroup):
    """How the layers of the trained network are computed. docs/speed.md says what to choose."""

    attention_mechanism: Mechanism = option(
        DEFAULT,
        "How attention is computed, in training and in validation. diffusers: PyTorch chooses. native-...: one of PyTorch's own ways; for "
        "the kernels for Apple GPUs (metal-flash-attention...) native stands in. flash-attn..., xformers and sageattention...: the package "
        "of that name. ...-hub: a kernel of kernels-community on the Hugging Face hub, loaded through the package kernels.",
        synonyms=SYNONYMS,
        later=LATER,
    )
    sageattention_usage: Literal["inference", "training", "training+inference"] = option(
        "inference",
        "Where a sageattention mechanism is used. inference: for validation images; training computes attention as usual. SageAttention "
        "has no backward pass, so the others are refused.",
    )
    unet_attention_slice: bool = option(
        False, "Compute the attention of a UNet for some heads at a time. This saves memory where no fused attention exists, and is slower."
    )
    enable_chunked_feed_forward: bool = option(
        False, "Compute the feed-forward layers of the network for some tokens at a time. The numbers stay the same up to rounding."
    )
    feed_forward_chunk_size: int | None = option(
        None, "Tokens of each sample that enable_chunked_feed_forward computes at a time. Empty: 1024.", ge=1
    )
    fuse_qkv_projections: bool = option(
        False,
        "Compute the projections of query, key and value that have the same input as one multiplication. Weights, adapters and files stay "
        "as they are. Quantised layers are computed one by one.",
    )

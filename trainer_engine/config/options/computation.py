"""Options of how networks are computed: the autoencoder's memory, and the attention of the trained network."""

from __future__ import annotations

from trainer_engine.config.option import OptionGroup, option


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

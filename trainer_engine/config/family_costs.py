"""What the encoders of a family cost in memory, for estimates. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextEncoderFacts:
    """The text encoders of a flavour."""

    names: tuple[str, ...]
    """Their usual names."""
    parameters: tuple[int, ...] = ()
    """Weights of each that are loaded; empty where they are not known."""
    layers: int = 0
    """Layers of a language model that are loaded, because those behind them make no state that the network reads; 0 for all."""
    width: int = 4096
    """Numbers in the state of one token, of all text encoders together."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderFacts:
    """An autoencoder whose memory is needed at the size of the image, in the first layers of its encoder and the last of its decoder.

    ``encoding`` and ``decoding`` are numbers that live at once for each pixel, as multiples of ``width``. They were measured on small
    autoencoders with the layers of the published ones (``tests/training/preflight/test_measured_phases.py``).
    """

    parameters: int = 83_821_011
    width: int = 128
    """Channels of its first convolution."""
    encoding: float = 5.0
    decoding: float = 6.0
    clip_encoding: float = 0.0
    """As ``encoding``, for a clip of any length, of the pixels of one frame; 0 if it takes images alone."""
    clip_decoding: float = 0.0
    tile_px: int = 1024
    """Edge of the tiles that ``vae_enable_tiling`` computes, unless its configuration says another ``sample_size``."""


CAUSAL_AUTOENCODER = AutoencoderFacts(
    parameters=126_892_531,
    width=96,
    encoding=10.1,
    decoding=18.1,
    clip_encoding=38.0,
    clip_decoding=52.0,
    tile_px=256,
)
"""The autoencoder of Wan 2.1: causal convolutions over frames, which keep the last frames of every layer for the next ones."""

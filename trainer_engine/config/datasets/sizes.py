"""How much disk the entries of a cache take, from the shapes of a family's latents and text embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.family_spec import FamilySpec

TYPICAL_TOKENS = 50
"""Tokens of a caption of some 35 words."""
FLOAT32_BYTES, SHORT_BYTES = 4, 2
GB = 1_000_000_000
EDGE_PX = 1024
CLIP_PX = (832, 480)


def latent_bytes(spec: FamilySpec, width: int, height: int, *, frames: int = 1, number: int = SHORT_BYTES) -> int:
    """Bytes of the latents of an image or a clip of ``width`` x ``height`` pixels, with ``number`` bytes each."""
    cells = (width // spec.latents.scale_factor_px) * (height // spec.latents.scale_factor_px)
    return spec.latent_frames(frames) * cells * spec.latents.channels * number


def bytes_with_frame(spec: FamilySpec, latents: int, *, number: int = SHORT_BYTES) -> int:
    """Bytes of an entry whose latents take ``latents``, in runs that are given first frames: their latents, and what an encoder makes
    of them with ``number`` bytes each."""
    return 2 * latents + number * (spec.first_frame.numbers if spec.first_frame else 0)


def caption_bytes(
    spec: FamilySpec,
    tokens: int = TYPICAL_TOKENS,
    *,
    flavour: str | None = None,
    limit: int | None = None,
    unpadded: bool = False,
    number: int = SHORT_BYTES,
) -> int:
    """Bytes of the embedding of a caption of so many tokens.

    ``limit``: the option tokenizer_max_length. ``unpadded``: with ``PromptSpec.unpadded_option``.
    """
    prompts, limit = spec.prompts, spec.tokens_of(flavour, limit)
    stored = limit if prompts.stores_padding and not unpadded else min(tokens, limit)
    return (stored * prompts.encoders_of(flavour).width + prompts.pooled) * number


def stores_padding(spec: FamilySpec, values: Mapping[str, Any]) -> bool:
    """Whether a run with these options stores the states of padding."""
    is_zero = spec.prompts.leaves_out_padding and values.get("t5_padding") == "zero"
    return spec.prompts.stores_padding and not is_zero and not values.get(spec.prompts.unpadded_option)


def size_rows(specs: Mapping[str, FamilySpec], count: int = 100_000) -> Iterator[tuple[str, str, str, str]]:
    """(family, GB of images in bfloat16, the same in float32, GB of captions) for ``count`` of each, one row a family or variant."""
    for name, spec in specs.items():
        short, exact = (count * latent_bytes(spec, EDGE_PX, EDGE_PX, number=number) / GB for number in (SHORT_BYTES, FLOAT32_BYTES))
        captions = f"{count * caption_bytes(spec) / GB:.1f}"
        yield f"`{name}`", f"{short:.1f}", f"{exact:.1f}", captions
        if spec.prompts.unpadded_option:
            captions = f"{count * caption_bytes(spec, unpadded=True) / GB:.1f}"
            yield f"`{name}` with `{spec.prompts.unpadded_option}`", f"{short:.1f}", f"{exact:.1f}", captions
        if spec.sampling.clips:
            frames = spec.sampling.clips.trained_frames
            short, exact = (
                count * latent_bytes(spec, *CLIP_PX, frames=frames, number=number) / GB for number in (SHORT_BYTES, FLOAT32_BYTES)
            )
            title = f"`{name}`, clips of {frames} frames of {CLIP_PX[0]}x{CLIP_PX[1]} px"
            yield title, f"{short:.1f}", f"{exact:.1f}", captions
            if spec.first_frame:
                alone = latent_bytes(spec, *CLIP_PX, frames=frames, number=SHORT_BYTES)
                short = count * bytes_with_frame(spec, alone) / GB
                yield f"`{name}`, the same with their first frames", f"{short:.1f}", f"{2 * short:.1f}", captions

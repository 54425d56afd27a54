"""Context parallelism: how the tokens of a sample are spread over several processes. ``rules/distributed.py`` says what fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

SIZE, STRATEGY = "context_parallel_size", "context_parallel_comm_strategy"
ALL_TO_ALL, ALL_GATHER = "alltoall", "allgather"


@dataclass(frozen=True, kw_only=True)
class SplittingSpec:
    """How diffusers splits the tokens of a family's network over the processes of a group."""

    cells: int = 2
    """Latent cells of a token along the height and along the width."""
    splits_prompt: bool = False
    """Whether the tokens of the prompt are split, too. Otherwise each process has all of them."""
    splits_masks: bool = False
    """Whether the masks that hide the padding of prompts are split with the tokens."""

    def tokens(self, size: tuple[int, int], frames: int, scale_factor_px: int) -> int:
        """Tokens of an image or a clip. ``size``: width and height in pixels; ``frames``: those of the latents."""
        width, height = (edge // scale_factor_px // self.cells for edge in size)
        return frames * width * height


@dataclass(frozen=True)
class SizeInUse:
    """One size that samples or validation images of a run have."""

    option: str
    """The option that chose it."""
    title: str
    size: tuple[int, int]
    frames: int = 1
    """Those of the clip in pixels; 1 for an image."""


def uneven_sizes(
    splitting: SplittingSpec, sizes: Iterable[SizeInUse], group: int, scale_factor_px: int, latent_frames: Callable[[int], int]
) -> dict[str, dict[str, int]]:
    """Option -> title -> number of tokens, of the sizes whose tokens a group of processes cannot share evenly.

    ``latent_frames``: frames of a clip -> frames of its latents.
    """
    uneven: dict[str, dict[str, int]] = {}
    for one in sizes:
        tokens = splitting.tokens(one.size, latent_frames(one.frames), scale_factor_px)
        if tokens % group:
            uneven.setdefault(one.option, {})[one.title] = tokens
    return uneven

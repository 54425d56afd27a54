"""Generation with the pipeline of diffusers from embeddings that are there already, and the positions of tokens as it has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import LongCatImagePipeline
from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids
from torch import Tensor

from trainer_engine.families.common.latent_squares import CELLS

PROMPT, GENERATED = 0, 1
"""Numbers of the prompt and of the image that is generated among the positions; references count on."""


def prompt_positions(tokens: int, device: torch.device) -> Tensor:
    """(T, 3) for the tokens of a prompt: its number, and twice the place in the text."""
    positions: Tensor = prepare_pos_ids(modality_id=PROMPT, type="text", start=(0, 0), num_token=tokens)
    return positions.to(device)


def image_positions(sizes: Sequence[tuple[int, int]], prompt: int, device: torch.device, first: int = GENERATED) -> Tensor:
    """(N, 3) for images of these sizes in latent cells: number of the image, row, column.

    Each begins behind the ``prompt`` tokens of the prompt. ``first``: number of the first image.
    """
    grids = [
        prepare_pos_ids(modality_id=number, type="image", start=(prompt, prompt), height=height // CELLS, width=width // CELLS)
        for number, (height, width) in enumerate(sizes, start=first)
    ]
    return torch.cat(grids).to(device)


class EmbeddedPipeline(LongCatImagePipeline):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Takes embeddings (T, D) in the place of texts.

    The pipeline of diffusers has arguments for embeddings, and asks for the texts even so. It says nothing of its steps.
    """

    def encode_prompt(self, prompt: Sequence[Tensor], **_: Any) -> tuple[Tensor, Tensor]:
        embeds = torch.stack(tuple(prompt))
        return embeds, prompt_positions(embeds.shape[1], embeds.device)

    @contextmanager
    def reporting(self, report: Callable[[Any, int, Any, dict[str, Tensor]], Any]) -> Iterator[None]:
        """In the block ``report`` is told the latents after each step of the sampler."""
        take = self.scheduler.step

        def step(prediction: Tensor, timestep: Tensor, latents: Tensor, **how: Any) -> Any:
            taken = take(prediction, timestep, latents, **how)
            report(self, 0, timestep, {"latents": taken[0]})
            return taken

        self.scheduler.step = step
        try:
            yield
        finally:
            del self.scheduler.step

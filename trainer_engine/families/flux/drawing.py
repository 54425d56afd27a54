"""Drawing with the pipelines of diffusers, from embeddings and with any number of references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from torch import Tensor, nn

from trainer_engine.families.flux.tokens import pack, positions


class ReferencePipeline(FluxKontextPipeline):
    """Takes the latents of its references instead of one image; each has a number of its own among the positions."""

    references: Sequence[Tensor] = ()
    """(1, C, h, w) each, scaled."""

    def prepare_latents(self, image: Tensor | None, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        latents, _, ids, _ = super().prepare_latents(None, *arguments, **named)
        if not self.references:
            return latents, None, ids, None
        packed = torch.cat([pack(reference) for reference in self.references], dim=1).to(latents)
        places = [positions(one.shape[-2], one.shape[-1], number) for number, one in enumerate(self.references, start=1)]
        return latents, packed, ids, torch.cat(places).to(ids)


def make_pipeline(parts: dict[str, Any], *, with_references: bool) -> FluxPipeline | ReferencePipeline:
    """``parts``: ``transformer``, ``vae`` and ``scheduler``; the pipeline gets no text encoders."""
    none: dict[str, nn.Module | None] = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = (ReferencePipeline if with_references else FluxPipeline)(**parts, **none)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline

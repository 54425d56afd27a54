"""The sequence of Ideogram 4, the tokens of the prompt before those of the image, and its latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_ideogram4 import (
    IMAGE_POSITION_OFFSET,
    LLM_TOKEN_INDICATOR,
    OUTPUT_IMAGE_INDICATOR,
    SEQUENCE_PADDING_INDICATOR,
)
from torch import Tensor, nn

from trainer_engine.families.common.autoencoder import CELLS, ShuffledAutoencoder

Places = dict[str, Tensor | None]
"""Arguments of the network that say what each token of the sequence is, and where."""
IN_USE = 1
"""Segment of everything but padding: tokens attend to their own segment."""


class Ideogram4Autoencoder(ShuffledAutoencoder):
    """The autoencoder of Flux.2, whose squares of 2 x 2 cells become channels in another order: row, column, channel of the cell.

    The statistics of its latents are in this order, too.
    """

    def _scaled(self, vae: Any, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 4 C, h/2, w/2)."""
        mean, deviation = self._statistics(vae)
        batch, channels, height, width = latents.shape
        squares = latents.view(batch, channels, height // CELLS, CELLS, width // CELLS, CELLS).permute(0, 3, 5, 1, 2, 4)
        scaled: Tensor = (squares.reshape(batch, -1, height // CELLS, width // CELLS) - mean) / deviation
        return scaled

    def _unscaled(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = self._statistics(vae)
        batch, channels, height, width = latents.shape
        unscaled: Tensor = latents * deviation + mean
        squares = unscaled.view(batch, CELLS, CELLS, channels // (CELLS * CELLS), height, width).permute(0, 3, 4, 1, 5, 2)
        return squares.reshape(batch, channels // (CELLS * CELLS), CELLS * height, CELLS * width)


def image_places(height: int, width: int, device: torch.device) -> Tensor:
    """(h w, 3): time, row and column of the tokens of an image of so many latent cells, away from all places in a text."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    offset = int(IMAGE_POSITION_OFFSET)
    return (torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3) + offset).to(device)


def layout(text: int, height: int, width: int, device: torch.device) -> Places:
    """Arguments of the network for a prompt of ``text`` tokens and an image of so many latent cells: (1, text + h w, ...) each."""
    words = torch.arange(text)[:, None].expand(-1, 3).to(device)
    places = torch.cat([words, image_places(height, width, device)])
    roles = torch.tensor([LLM_TOKEN_INDICATOR] * text + [OUTPUT_IMAGE_INDICATOR] * (height * width)).to(device)
    return {"position_ids": places[None], "segment_ids": torch.full_like(roles, IN_USE)[None], "indicator": roles[None]}


def masked(places: Places, mask: Tensor | None, batch: int) -> Places:
    """A ``layout`` for a batch of prompts. ``mask`` (B, T), true for what is no padding; None if nothing is, and all is one segment."""
    found = {name: None if one is None else one.expand(batch, *one.shape[1:]) for name, one in places.items()}
    indicator, segments = found["indicator"], found["segment_ids"]
    if mask is None or indicator is None or segments is None:
        return {**found, "segment_ids": None}
    image = mask.new_ones(batch, indicator.shape[1] - mask.shape[1])
    is_used = torch.cat([mask, image], dim=1)
    return {**found, "indicator": indicator * is_used, "segment_ids": segments.masked_fill(~is_used, SEQUENCE_PADDING_INDICATOR)}


def velocity(network: nn.Module, tokens: Tensor, embeds: Tensor, time: Tensor, places: Places) -> Tensor:
    """The output (B, N, C) of the network for the tokens (B, N, C) of an image: from noise to data, at the share ``time`` of data.

    ``embeds`` (B, T, D) are the states of the prompt; ``places`` is the ``masked`` layout of both.
    """
    output: Tensor = network(hidden_states=tokens, timestep=time, encoder_hidden_states=embeds, **places, return_dict=False)[0]
    return output[:, embeds.shape[1] :]

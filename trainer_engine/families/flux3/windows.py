"""Prompts in windows: FLUX.3 attends to the padding of a prompt up to a multiple of 80 tokens, and to no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.transformers.transformer_flux3 import Flux3AttnProcessor, Flux3PosEmbed
from torch import Tensor, nn

from trainer_engine.families.common.chat_prompts import ChatEncoder
from trainer_engine.families.inputs import PromptBatch

WINDOW = 80
"""Windows are multiples of this many tokens."""
PADDING_POSITION = 1
"""Position of every token of the padding in the text encoder, as the network was trained."""
AXES = 4


def window_of(tokens: int, limit: int) -> int:
    """Length of the window of a prompt of so many tokens."""
    return min(-(-tokens // WINDOW) * WINDOW, limit)


class WindowEncoder(ChatEncoder):
    """The states of a language model for prompts in their windows, each prompt alone, as the pipeline reads them.

    Every token of a padding has the same position and sees the same tokens, so that all of them have the same states: those of the first
    one stand for all.
    """

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D x layers) of each prompt on the CPU, with those of one token of padding if its window has any."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: str) -> Tensor:
        model, tokenizer = self.parts()
        text = tokenizer.apply_chat_template(self._as_chat(prompt), tokenize=False, **self._template)
        length = len(tokenizer(text, truncation=True, max_length=self.token_limit).input_ids)
        window = window_of(length, self.token_limit)
        how = {"padding": "max_length", "padding_side": "right", "truncation": True, "max_length": window, "return_tensors": "pt"}
        tokens = tokenizer(text, **how).to(self.device)
        positions = torch.arange(window, device=self.device)[None].masked_fill(tokens.attention_mask == 0, PADDING_POSITION)
        given = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, "position_ids": positions}
        states = model(**given, output_hidden_states=True, use_cache=False).hidden_states
        return torch.cat([states[layer][0, : length + 1] for layer in self._layers], dim=-1).cpu()


def in_windows(states: Sequence[Tensor], limit: int) -> PromptBatch:
    """The states of prompts as ``WindowEncoder`` makes them, as one batch: ``embeds`` (B, T, D), T the longest window.

    If the windows differ, ``hidden`` (B, T) is true for what is beyond that of a prompt.
    """
    windows = [window_of(len(one), limit) for one in states]
    longest = max(windows)
    embeds = torch.stack([torch.cat([one, one[-1:].expand(longest - len(one), -1)]) for one in states])
    if len(set(windows)) == 1:
        return {"embeds": embeds}
    return {"embeds": embeds, "hidden": torch.arange(longest) >= torch.tensor(windows)[:, None]}


def prompt_places(positions: Tensor, hidden: Tensor | None) -> Tensor:
    """(T, 4) positions of the tokens of prompts; (T, 4 + B) with ``hidden`` (B, T), for a network with ``hide_padding``."""
    return positions if hidden is None else torch.cat([positions, hidden.to(positions).T], dim=1)


def image_places(positions: Tensor, hidden: Tensor | None) -> Tensor:
    """(N, 4) positions of tokens that every sample sees, beside ``prompt_places`` with the same ``hidden``."""
    return positions if hidden is None else torch.cat([positions, positions.new_zeros(len(positions), len(hidden))], dim=1)


def hide_padding(network: nn.Module) -> None:
    """Make a network leave out the tokens that its positions hide from a sample.

    The network takes no mask. What is hidden travels with the positions, as further columns, so that blocks that are computed again in the
    backward pass see it as well. Without such columns nothing changes.
    """
    own: Any = network
    own.pos_embed = _Places(own.pos_embed.theta, own.pos_embed.axes_dim)
    for module in network.modules():
        if isinstance(module, AttentionModuleMixin):
            module.set_processor(_Attention())


class _Places(Flux3PosEmbed):  # type: ignore[misc]  # mypy does not read diffusers' types
    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(S, 4 + B) -> (S, D + B) and (S, D)."""
        cosines, sines = super().forward(ids)
        hidden = ids[:, AXES:]
        return (torch.cat([cosines, hidden.to(cosines)], dim=1) if hidden.shape[1] else cosines), sines


class _Attention(Flux3AttnProcessor):  # type: ignore[misc]
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        if image_rotary_emb is not None and image_rotary_emb[0].shape[1] > image_rotary_emb[1].shape[1]:
            cosines, sines = image_rotary_emb
            width = sines.shape[1]
            attention_mask = (cosines[:, width:] == 0).T[:, None, None]  # (B, 1, 1, S), true for what is seen
            image_rotary_emb = cosines[:, :width], sines
        output: Tensor = super().__call__(attn, hidden_states, attention_mask, image_rotary_emb)
        return output

"""The attention of HiDream-I1 through the dispatcher of diffusers, which its own processor does not use."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_hidream_image import HiDreamAttention, apply_rope
from torch import Tensor

from trainer_engine.families.common.computation import Dispatched


class DispatchedAttention(Dispatched):
    """Computes what ``HiDreamAttnProcessor`` computes, with the backend that ``attention_mechanism`` names."""

    layers = HiDreamAttention

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        hidden_states_masks: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, T, C), alone or with a prompt (B, S, C) -> the same shapes. The tokens of the image come first.

        The mask is 0 for padding, whose keys it makes zeros: padding is attended to all the same, as the network was trained.
        """
        query, key, value = _heads(attn, hidden_states, "")
        if hidden_states_masks is not None:
            key = key * hidden_states_masks[..., None, None]
        if encoder_hidden_states is not None:
            prompt = _heads(attn, encoder_hidden_states, "_t")
            query, key, value = (torch.cat(both, dim=1) for both in zip((query, key, value), prompt, strict=True))
        query, key = _rotated(query, key, image_rotary_emb)
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2).to(query.dtype)
        if encoder_hidden_states is None:
            output: Tensor = attn.to_out(attended)
            return output
        image, text = attended.tensor_split((hidden_states.shape[1],), dim=1)
        return attn.to_out(image), attn.to_out_t(text)


def _heads(attn: Any, states: Tensor, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, T, H, D) of one side, the first two normalised. ``side``: ending of the names of its layers."""
    query = getattr(attn, f"q_rms_norm{side}")(getattr(attn, f"to_q{side}")(states)).to(states.dtype)
    key = getattr(attn, f"k_rms_norm{side}")(getattr(attn, f"to_k{side}")(states)).to(states.dtype)
    value = getattr(attn, f"to_v{side}")(states)
    width = key.shape[-1] // attn.heads
    query, key, value = (one.unflatten(-1, (attn.heads, width)) for one in (query, key, value))
    return query, key, value


def _rotated(query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both with the first numbers of each head rotated, as many as ``positions`` has pairs of."""
    assert positions is not None, "every token has a position"
    rotated = 2 * positions.shape[-3]
    if rotated == query.shape[-1]:
        found: tuple[Tensor, Tensor] = apply_rope(query, key, positions)
        return found
    (query, query_rest), (key, key_rest) = query.chunk(2, dim=-1), key.chunk(2, dim=-1)
    query, key = apply_rope(query, key, positions)
    return torch.cat([query, query_rest], dim=-1), torch.cat([key, key_rest], dim=-1)

"""The attention of the network through the dispatcher of diffusers, so that ``attention_mechanism`` chooses how it is computed."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from trainer_engine.families.common.computation import Dispatched


class DispatchedAttention(Dispatched):
    """Computes what ``Lumina2AttnProcessor2_0`` computes, which calls PyTorch's attention itself: several heads of the queries share one
    of keys and values (Ainslie et al., 2023, "GQA")."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, T, C) and its mask (B, T) on any device, true for tokens that count -> (B, T, C)."""
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))
        width = query.shape[-1]
        key, value = (layer(encoder_hidden_states).unflatten(-1, (-1, width)) for layer in (attn.to_k, attn.to_v))
        query, key = (
            apply_rotary_emb(norm(one), image_rotary_emb, use_real=False).to(one.dtype)
            for norm, one in ((attn.norm_q, query), (attn.norm_k, key))
        )
        shared = attn.heads // key.shape[2]
        key, value = (one.repeat_interleave(shared, dim=2) for one in (key, value))
        mask = None if attention_mask is None else attention_mask.to(query.device, non_blocking=True).bool()[:, None, None]
        attended = dispatch_attention_fn(query, key, value, attn_mask=mask, scale=attn.scale, backend=self._attention_backend)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended.flatten(2).type_as(query)))
        return output

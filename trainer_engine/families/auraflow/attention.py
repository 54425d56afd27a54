"""The attention of the network through the dispatcher of diffusers, so that ``attention_mechanism`` chooses how it is computed."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from trainer_engine.families.common.computation import Dispatched, heads_of


class DispatchedAttention(Dispatched):
    """Computes what ``AuraFlowAttnProcessor2_0`` computes, which calls PyTorch's attention itself."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(B, T, C), alone or with a prompt (B, S, C) -> the same shapes. The tokens of the prompt come first."""
        query, key, value = heads_of(attn, hidden_states, ("to_q", "to_k", "to_v"), (attn.norm_q, attn.norm_k))
        length = 0
        if encoder_hidden_states is not None:
            length, norms = encoder_hidden_states.shape[1], (attn.norm_added_q, attn.norm_added_k)
            prompt = heads_of(attn, encoder_hidden_states, ("add_q_proj", "add_k_proj", "add_v_proj"), norms)
            query, key, value = (torch.cat(both, dim=1) for both in zip(prompt, (query, key, value), strict=True))
        attended = dispatch_attention_fn(query, key, value, scale=attn.scale, backend=self._attention_backend).flatten(2)
        of_prompt, of_image = attended.to(query.dtype).tensor_split((length,), dim=1)
        output: Tensor = attn.to_out[1](attn.to_out[0](of_image))
        return output if encoder_hidden_states is None else (output, attn.to_add_out(of_prompt))

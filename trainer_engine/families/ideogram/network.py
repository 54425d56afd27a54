"""The network of Ideogram 4, which projects the states of the prompt for the tokens of the prompt alone."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Ideogram4Transformer2DModel
from diffusers.models.transformers.transformer_ideogram4 import LLM_TOKEN_INDICATOR, OUTPUT_IMAGE_INDICATOR
from torch import Tensor
from torch.nn.functional import silu


class ShortStates(Ideogram4Transformer2DModel):  # type: ignore[misc]  # mypy does not read diffusers' types
    """Takes the tokens of the image and the states of the prompt apart, beside what its class takes.

    Its class takes both for the whole sequence. The states of an image of 1024 x 1024 pixels would be 4,096 rows of 53,248 zeros, which are
    normalised in float32: some gigabytes. Weights, configuration and values are the same.
    """

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        position_ids: Tensor,
        segment_ids: Tensor | None,
        indicator: Tensor,
        **others: Any,
    ) -> Any:
        """Tokens (B, N, C) of the image, or of both, states (B, T, D) of the prompt, which come first, and places of both (B, T + N, ...).

        ``segment_ids`` None: all tokens attend to one another. Returns (B, T + N, C) in a tuple.
        """
        text = encoder_hidden_states.shape[1]
        if text == indicator.shape[1]:
            return super().forward(hidden_states, timestep, encoder_hidden_states, position_ids, segment_ids, indicator, **others)
        is_word = (indicator[:, :text] == LLM_TOKEN_INDICATOR).to(hidden_states.dtype)[..., None]
        words = self.llm_cond_proj(self.llm_cond_norm(encoder_hidden_states * is_word)) * is_word
        roles = self.embed_image_indicator((indicator == OUTPUT_IMAGE_INDICATOR).long())
        tokens = torch.cat([words, self.input_proj(hidden_states[:, text - indicator.shape[1] :])], dim=1) + roles
        modulation = silu(self.adaln_proj(self.t_embedding(timestep)[:, None]))
        cosines, sines = self.rotary_emb(position_ids)
        rotary = cosines.to(tokens.dtype), sines.to(tokens.dtype)
        mask = None if segment_ids is None else (segment_ids[:, :, None] == segment_ids[:, None])[:, None]
        for block in self.layers:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, mask, rotary, modulation)
            else:
                tokens = block(tokens, mask, rotary, modulation)
        return (self.final_layer(tokens, conditioning=modulation),)


for _name in ("__name__", "__qualname__", "__module__"):  # in configurations, results and adapter files it is the class that it extends
    setattr(ShortStates, _name, getattr(Ideogram4Transformer2DModel, _name))

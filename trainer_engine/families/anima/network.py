"""What Anima's network needs to compute here: attention through the dispatcher, no torchvision, and images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from diffusers import CosmosTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_cosmos
from torch import Tensor
from torch.nn.functional import interpolate

from trainer_engine.families.common.computation import Dispatched

EDGE_TOKENS = 1024
"""Tokens along an edge for which positions are counted: 16,384 pixels."""


class CosmosProcessor(Dispatched):
    """The attention of Cosmos through the dispatcher of diffusers, which its own processor calls without the backend that is chosen."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, T, C), which attend to themselves, with rotated places, or to (B, S, D) -> (B, T, C)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1)))
        key = attn.norm_k(attn.to_k(context).unflatten(-1, (attn.heads, -1)))
        value = attn.to_v(context).unflatten(-1, (attn.heads, -1))
        if image_rotary_emb is not None:
            query, key = (
                apply_rotary_emb(one, image_rotary_emb, use_real=True, use_real_unbind_dim=-2, sequence_dim=1) for one in (query, key)
            )
        attended = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        output: Tensor = attn.to_out[1](attn.to_out[0](attended.flatten(2).to(query.dtype)))
        return output


def fit_for_images(network: CosmosTransformer3DModel) -> None:
    """Make a network compute without torchvision, and images with edges beyond 2048 pixels. No weight and no configuration changes."""
    _stand_in_for_torchvision()
    network.rope.max_size = [max(EDGE_TOKENS, *network.rope.max_size)]
    CosmosProcessor.give(network)


def _stand_in_for_torchvision() -> None:
    """Give diffusers what it takes of torchvision to scale the padding mask to the latents, if torchvision is not installed."""
    if not hasattr(transformer_cosmos, "transforms"):
        functional = SimpleNamespace(resize=_nearest)
        transformer_cosmos.transforms = SimpleNamespace(functional=functional, InterpolationMode=SimpleNamespace(NEAREST="nearest"))


def _nearest(image: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), each number that of the nearest place."""
    return interpolate(image, size=tuple(size), mode=interpolation)

"""Prompts through CLIP's text encoders (Radford et al., 2021), as the pipelines of Stable Diffusion use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from trainer_engine.config.encoder_fit import clip_skip_problem
from trainer_engine.contract.errors import InvalidOptions

ClipEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class ClipOutput:
    """Which of its results a network reads of a CLIP text encoder."""

    clip_skip: int
    """The option: layers back from the one whose states the network was trained with."""
    penultimate: bool = False
    """Whether that one is the last but one: Stable Diffusion XL. Else it is the last."""
    pooled: bool = False
    """Whether the network also reads the projected pooled prompt, which comes from the last layer."""

    @property
    def skip(self) -> int:
        """Layers back from the last one."""
        return self.clip_skip + self.penultimate

    @property
    def encoder_class(self) -> type[ClipEncoder]:
        found: type[ClipEncoder] = CLIPTextModelWithProjection if self.pooled else CLIPTextModel
        return found

    @property
    def normalize(self) -> bool:
        """Whether the encoder's final layer norm is applied: Stable Diffusion 1 and 2 were trained with it."""
        return not self.penultimate


class ClipTokens(NamedTuple):
    """Prompts, padded and cut to the tokenizer's length; the padding is part of what the network attends to."""

    input_ids: Tensor
    """(B, 77) int64."""
    attention_mask: Tensor
    """(B, 77) int64, 1 for the tokens of the prompt. Only some encoders heed it."""


class ClipStates(NamedTuple):
    """What a CLIP text encoder makes of prompts."""

    states: Tensor
    """(B, 77, D)"""
    first: Tensor
    """Output 0 of the encoder (B, ...): of one with projection, the pooled prompt."""


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> ClipTokens:
    """The tokens of prompts, on the CPU."""
    tokens = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    return ClipTokens(tokens.input_ids, tokens.attention_mask)


def clip_states(encoder: ClipEncoder, tokens: ClipTokens, output: ClipOutput, call: Callable[..., Any] | None = None) -> ClipStates:
    """Encode tokens, which lie on the encoder's device. ``call`` runs the encoder in its wrapper; None runs it as it is.

    Raises InvalidOptions if the encoder has no such layer.
    """
    refuse_missing_layer(encoder, output)
    mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    found = (call or encoder)(tokens.input_ids, attention_mask=mask, output_hidden_states=True)
    states: Tensor = found.hidden_states[-(output.skip + 1)]
    return ClipStates(_inner(encoder).final_layer_norm(states) if output.normalize else states, found[0])


def refuse_missing_layer(encoder: ClipEncoder, output: ClipOutput) -> None:
    """Raises InvalidOptions if ``clip_skip`` asks for a layer before the first."""
    problem = clip_skip_problem(output.clip_skip, int(encoder.config.num_hidden_layers), penultimate=output.penultimate)
    if problem:
        raise InvalidOptions([problem])


def unread_parameters(encoder: ClipEncoder, output: ClipOutput) -> list[nn.Parameter]:
    """Parameters of the layers behind the one whose states the network reads. Raises InvalidOptions if there is no such layer."""
    refuse_missing_layer(encoder, output)
    if output.pooled:
        return []
    inner = _inner(encoder)
    layers = list(inner.encoder.layers)
    unread: list[nn.Module] = layers[len(layers) - output.skip :]
    modules = unread if output.normalize else [*unread, inner.final_layer_norm]
    return [parameter for module in modules for parameter in module.parameters()]


def _inner(encoder: ClipEncoder) -> Any:
    """transformers 5 has merged the encoder without projection and its inner model."""
    return getattr(encoder, "text_model", encoder)

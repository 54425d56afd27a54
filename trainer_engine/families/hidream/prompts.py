"""Prompts as four text encoders read them for HiDream-I1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.hidream.components import CLIP_G, CLIP_L, LLAMA, T5
from trainer_engine.families.inputs import STORED, PromptBatch, PromptEmbedding

TextPart = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class FourEncoders:
    """Each text encoder is loaded when it is first needed."""

    def __init__(
        self,
        load: Callable[[str], TextPart],
        device: torch.device,
        *,
        find_layers: Callable[[], tuple[int, ...]],
        token_limit: int,
        zero_padding: bool,
    ) -> None:
        """``load`` returns a text encoder on ``device``, and its tokenizer. ``find_layers``: which states of Llama are kept.

        ``zero_padding``: the states of T5's padding are zeros.
        """
        self._load = load
        self.device = device
        self._find_layers = find_layers
        self.token_limit = token_limit
        self._zero_padding = zero_padding
        self._loaded: dict[str, TextPart] = {}

    def free(self) -> None:
        self._loaded = {}

    def part(self, name: str) -> TextPart:
        """A text encoder and its tokenizer."""
        loaded = self._loaded.get(name)  # another thread may drop it at any time
        if loaded is None:
            self._loaded[name] = loaded = self._load(name)
        return loaded

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """The embeddings of prompts on the CPU, in ``STORED``; longer ones are cut off.

        ``embeds`` (T, D) of T5 and ``llama`` (layers, T, D) have the states of padding, to which the network attends. ``pooled``
        (P1 + P2,) comes from both CLIPs.
        """
        pooled = torch.cat([self._read(name, prompts, masked=False)[0] for name in (CLIP_L, CLIP_G)], dim=-1)
        read, mask = self._read(T5, prompts)
        t5 = read * mask[..., None] if self._zero_padding else read
        states, _ = self._read(LLAMA, prompts, output_hidden_states=True)
        llama = torch.stack([states[layer] for layer in self._find_layers()], dim=1)
        kept = {"embeds": t5, "llama": llama, "pooled": pooled}
        stored = {name: tensor.to(STORED).cpu() for name, tensor in kept.items()}
        return [{name: tensor[row].clone() for name, tensor in stored.items()} for row in range(len(prompts))]

    def _read(self, name: str, prompts: Sequence[str], *, masked: bool = True, **asked: bool) -> tuple[Any, Tensor]:
        """(what the network reads of a text encoder, the mask of its tokens), as the pipeline of diffusers asks for it.

        ``masked``: whether the encoder is given the mask. With ``output_hidden_states`` it is the states of all layers.
        """
        encoder, tokenizer = self.part(name)
        limit = min(self.token_limit, tokenizer.model_max_length) if name in (T5, LLAMA) else self.token_limit
        tokens = tokenizer(list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(self.device)
        found = encoder(tokens.input_ids.to(self.device), **({"attention_mask": mask} if masked else {}), **asked)
        return (found.hidden_states if asked else found[0]), mask


def stacked(prompts: Sequence[PromptEmbedding]) -> PromptBatch:
    """Prompts have one length: each tensor is stacked along a new first dimension."""
    return {name: torch.stack([prompt[name] for prompt in prompts]) for name in prompts[0]}


def network_prompts(prompts: PromptBatch, layers: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Mapping[str, Tensor]:
    """A batch of prompts as the network takes them.

    ``layers``: the states of Llama in the batch. The network asks for them by numbers from 0 (``llama_layers``); a number that it does not
    ask for has the states of the next one.
    """
    states = prompts["llama"].to(device, dtype).transpose(0, 1)
    places = [sum(layer <= number for layer in layers) for number in range(max(layers))]
    complete = len(layers) == max(layers)
    return {
        "encoder_hidden_states_t5": prompts["embeds"].to(device, dtype),
        "encoder_hidden_states_llama3": states if complete else states[places],
        "pooled_embeds": prompts["pooled"].to(device, dtype),
    }

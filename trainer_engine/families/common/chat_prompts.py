"""Prompts as the states of a language model that reads them in its chat template, as families with Qwen3 use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.inputs import PromptBatch, PromptEmbedding

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


class ChatEncoder:
    """Loaded when it is first needed. A prompt is the message of a user, and the model is about to answer it."""

    def __init__(self, load: Callable[[], Loaded], device: torch.device, *, layer: int, token_limit: int, **template: Any) -> None:
        """``layer`` counts the states of the model, the input's first; ``template`` are further variables of the chat template."""
        self._load = load
        self._device = device
        self._layer = layer
        self._limit = token_limit
        self._template = template
        self._loaded: Loaded | None = None

    def free(self) -> None:
        self._loaded = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D) of the tokens of each prompt, those of the template included, on the CPU; longer ones are cut off."""
        loaded = self._loaded  # another thread may drop it at any time
        if loaded is None:
            self._loaded = loaded = self._load()
        model, tokenizer = loaded
        texts = [self._as_message(tokenizer, prompt) for prompt in prompts]
        tokens = tokenizer(texts, padding="max_length", max_length=self._limit, truncation=True, return_tensors="pt").to(self._device)
        mask = tokens.attention_mask.bool()
        states = model(input_ids=tokens.input_ids, attention_mask=mask, output_hidden_states=True).hidden_states[self._layer]
        return [state[real].clone() for state, real in zip(states.cpu(), mask.cpu(), strict=True)]

    def _as_message(self, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **self._template)
        assert isinstance(text, str)
        return text


def padded(prompts: Sequence[PromptEmbedding]) -> PromptBatch:
    """``embeds`` (B, T, D), zeros after the last token of each prompt, and ``lengths`` (B,), the tokens of each.

    ``lengths`` stays on the CPU, so that nothing waits for a device to read it.
    """
    embeds = [prompt["embeds"] for prompt in prompts]
    return {
        "embeds": torch.nn.utils.rnn.pad_sequence(embeds, batch_first=True),
        "lengths": torch.tensor([len(embed) for embed in embeds]),
    }


def ragged(prompts: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The states (T, D) of each prompt of a batch that ``padded`` made, without padding."""
    rows = prompts["embeds"].to(device, dtype)
    return [row[:length] for row, length in zip(rows, prompts["lengths"].tolist(), strict=True)]

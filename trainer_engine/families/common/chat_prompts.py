"""Prompts as the states of a language model that reads them in its chat template, as families with Qwen3 use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.inputs import PromptBatch, PromptEmbedding

Chat = list[dict[str, Any]]
"""Messages as ``apply_chat_template`` takes them."""


def question(prompt: str) -> Chat:
    """The prompt as the only message, by the user."""
    return [{"role": "user", "content": prompt}]


class ChatEncoder:
    """The states of a language model for prompts in its chat template. The model is loaded when it is first needed."""

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        layers: Sequence[int],
        token_limit: int,
        keeps_padding: bool = False,
        as_chat: Callable[[str], Chat] = question,
        **template: Any,
    ) -> None:
        """``layers`` count the states of the model, beginning with its input; those of several layers stand side by side for each token.

        ``keeps_padding``: the states of the padding are part of the result, since they depend on the prompt and the network attends to
        them. ``template`` are the variables of the chat template.
        """
        self._load = load
        self._device = device
        self._layers = tuple(layers)
        self._limit = token_limit
        self._keeps_padding = keeps_padding
        self._as_chat = as_chat
        self._template = template
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def free(self) -> None:
        self._loaded = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D x layers) of the tokens of each prompt on the CPU, those of the template included; longer ones are cut off."""
        loaded = self._loaded  # another thread may drop it at any time
        if loaded is None:
            self._loaded = loaded = self._load()
        model, tokenizer = loaded
        texts = [tokenizer.apply_chat_template(self._as_chat(prompt), tokenize=False, **self._template) for prompt in prompts]
        tokens = tokenizer(
            texts, padding="max_length", max_length=self._limit, truncation=True, add_special_tokens=False, return_tensors="pt"
        ).to(self._device)
        states = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask.bool(), output_hidden_states=True).hidden_states
        joined = torch.cat([states[layer] for layer in self._layers], dim=-1).cpu()
        if self._keeps_padding:
            return [one.clone() for one in joined]
        return [one[real].clone() for one, real in zip(joined, tokens.attention_mask.bool().cpu(), strict=True)]


def side_by_side(prompts: Sequence[PromptEmbedding]) -> PromptBatch:
    """A tensor (T, D) for each prompt: their lengths are known without a read of the device."""
    return {f"embeds.{number}": prompt["embeds"] for number, prompt in enumerate(prompts)}


def ragged(prompts: PromptBatch, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The states (T, D) of each prompt of a batch that ``side_by_side`` made."""
    return [prompts[f"embeds.{number}"].to(device, dtype) for number in range(len(prompts))]

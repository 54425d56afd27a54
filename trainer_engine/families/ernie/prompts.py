"""Prompts as Ministral 3 reads them for ERNIE-Image: as they are, each alone and without padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import ChatEncoder

STATES = -2
"""The states of the text encoder that the network takes: those before its last layer."""


class PlainEncoder(ChatEncoder):
    """The states of the language model for prompts that are no chat."""

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D) of the tokens of each prompt on the CPU; longer ones are cut off."""
        model, tokenizer = self.parts()
        found = []
        for prompt in prompts:
            numbers = torch.tensor([numbers_of(tokenizer, prompt, self.token_limit)], device=self.device)
            states = model(input_ids=numbers, use_cache=False, output_hidden_states=True).hidden_states
            found.append(torch.cat([states[layer][0] for layer in self._layers], dim=-1).cpu())
        return found


def numbers_of(tokenizer: PreTrainedTokenizerBase, prompt: str, limit: int) -> list[int]:
    """The tokens of a prompt, at least one: that of the beginning, or the first of all where the tokenizer has none."""
    numbers: list[int] = tokenizer(prompt, max_length=limit, truncation=True)["input_ids"]
    return numbers or [0 if tokenizer.bos_token_id is None else tokenizer.bos_token_id]

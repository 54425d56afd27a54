"""Prompts as Qwen3-VL reads them in Krea 2: the states of several of its layers, stacked for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import (
    AFTER_PROMPT,
    BEFORE_PROMPT,
    DESCRIPTION_TASK,
    DESCRIPTION_TASK_TOKENS,
    ChatEncoder,
)
from trainer_engine.families.inputs import STORED

AFTER_TOKENS = 5
"""Tokens of ``AFTER_PROMPT``."""


class StackedEncoder(ChatEncoder):
    """The states of several layers of the language model for the tokens of a prompt and of the end of the conversation."""

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        find_layers: Callable[[], tuple[int, ...]],
        token_limit: int,
    ) -> None:
        """``find_layers``: which states of the model are stacked, beginning with its input. ``token_limit`` counts the end of the
        conversation, and not its beginning."""
        super().__init__(load, device, layers=(), token_limit=token_limit)
        self._find_layers = find_layers

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, layers, D) of each prompt on the CPU, in ``STORED``; longer ones are cut off.

        Padding lies between the prompt and the end of the conversation, and takes no position.
        """
        model, tokenizer = self.parts()
        beginning = BEFORE_PROMPT.format(task=DESCRIPTION_TASK)
        begun = tokenizer(
            [beginning + prompt for prompt in prompts],
            padding="max_length",
            padding_side="right",
            max_length=self.token_limit + DESCRIPTION_TASK_TOKENS - AFTER_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        ended = tokenizer([AFTER_PROMPT] * len(prompts), return_tensors="pt")
        tokens = torch.cat([begun.input_ids, ended.input_ids], dim=1).to(self.device)
        mask = torch.cat([begun.attention_mask, ended.attention_mask], dim=1).bool().to(self.device)
        positions = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        states = model(
            input_ids=tokens, attention_mask=mask, position_ids=positions.expand(3, -1, -1), output_hidden_states=True
        ).hidden_states
        stacked = torch.stack([states[layer] for layer in self._find_layers()], dim=2)[:, DESCRIPTION_TASK_TOKENS:]
        return [one[real].clone() for one, real in zip(stacked.to(STORED).cpu(), mask[:, DESCRIPTION_TASK_TOKENS:].cpu(), strict=True)]


def as_sampled(embeds: Tensor, token_limit: int) -> tuple[Tensor, Tensor]:
    """(T, layers, D) -> ((1, token_limit, layers, D), mask): padded as the pipeline pads, before the end of the conversation.

    The network looks at no padding.
    """
    padded = embeds.new_zeros(1, token_limit, *embeds.shape[1:])
    mask = torch.zeros(1, token_limit, dtype=torch.bool, device=embeds.device)
    length = len(embeds) - AFTER_TOKENS
    for place, states in ((slice(length), embeds[:length]), (slice(-AFTER_TOKENS, None), embeds[length:])):
        padded[0, place] = states
        mask[0, place] = True
    return padded, mask

"""Prompts as the states of Gemma 2, which reads most of them behind an instruction."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cache

import torch
from diffusers import SanaPipeline
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import ChatEncoder
from trainer_engine.families.inputs import NEGATIVE, is_negative

SHARED_TOKENS = 2
"""Tokens that the instruction alone has and that stand for the prompt, too: the first of all, and its last space, which joins a word."""


@cache
def published_instruction() -> str:
    """The instruction that the published weights were trained with, as the pipeline of diffusers has it."""
    lines: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)


class InstructedText(ChatEncoder):
    """The states of Gemma 2 for prompts that are padded to the limit. The model is loaded when it is first needed."""

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        instruction: str,
        token_limit: int,
    ) -> None:
        """``load`` returns the model on ``device``, and its tokenizer, which pads on the right."""
        super().__init__(load, device, layers=(), token_limit=token_limit)  # its last states alone are read
        self.instruction = instruction

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D) of each prompt on the CPU, without padding; longer ones are cut off.

        Negative prompts and an empty text are read as they are. Others follow the instruction, of whose states only the first
        one is part of the result. All are read in lower case.
        """
        found: dict[int, Tensor] = {}
        for is_plain in (False, True):
            rows = [row for row, text in enumerate(prompts) if (not text or is_negative(text)) is is_plain]
            texts = [prompts[row].removeprefix(NEGATIVE).lower().strip() for row in rows]
            if texts:
                found |= zip(rows, self._states(texts, "" if is_plain else self.instruction), strict=True)
        return [found[row] for row in range(len(prompts))]

    @torch.no_grad()
    def _states(self, prompts: Sequence[str], instruction: str) -> list[Tensor]:
        encoder, tokenizer = self.parts()
        before = len(tokenizer.encode(instruction)) - SHARED_TOKENS if instruction else 0
        tokens = tokenizer(
            [instruction + prompt for prompt in prompts],
            padding="max_length",
            max_length=before + self.token_limit,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        states = encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False).last_hidden_state
        chosen = [0, *range(1 - self.token_limit, 0)]
        lengths = tokens.attention_mask[:, chosen].sum(dim=1).tolist()
        return [one[chosen][:length].cpu() for one, length in zip(states, lengths, strict=True)]

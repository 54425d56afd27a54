"""Prompts as Gemma 2 reads them for Lumina-Image 2.0: behind an instruction, the negative one alone."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import BatchEncoding, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import ChatEncoder
from trainer_engine.families.inputs import NEGATIVE, is_negative

INSTRUCTION = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on textual "
    "prompts or user prompts."
)
BEFORE_PROMPT = f"{INSTRUCTION} <Prompt Start> "


def as_read(text: str) -> str:
    """What Gemma reads of a prompt.

    The pipeline steers away from texts without the instruction, and from nothing at all by default. So the empty prompt, which caption
    dropout trains, has none either.
    """
    return text.removeprefix(NEGATIVE) if not text or is_negative(text) else BEFORE_PROMPT + text


class InstructedEncoder(ChatEncoder):
    """The states of Gemma for prompts that are no chat."""

    def tokenize(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> BatchEncoding:
        tokens: BatchEncoding = tokenizer(
            [as_read(prompt) for prompt in prompts],
            padding="max_length",
            padding_side="right",
            max_length=self.token_limit,
            truncation=True,
            return_tensors="pt",
        )
        return tokens

"""Prompts as Qwen2.5-VL reads them in Qwen-Image: in a conversation whose beginning is left out of what the network sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import ChatEncoder

CONVERSATION = "<|im_start|>system\n{task}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
TASK = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects and background:"
)
TASK_TOKENS = 34
"""Tokens of the conversation before the prompt, whose states the network does not see."""


class PromptEncoder(ChatEncoder):
    """The last states of the language model for the prompt and the end of the conversation."""

    def __init__(
        self, load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]], device: torch.device, *, token_limit: int
    ) -> None:
        """``token_limit``: without the tokens before the prompt."""
        super().__init__(load, device, layers=(-1,), token_limit=token_limit)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D) of each prompt on the CPU; longer ones are cut off. Padding has no influence on them."""
        model, tokenizer = self.parts()
        tokens = tokenizer(
            [CONVERSATION.format(task=TASK, prompt=prompt) for prompt in prompts],
            padding=True,
            padding_side="right",
            max_length=self.token_limit + TASK_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        states = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.cpu()
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [one[TASK_TOKENS:length].clone() for one, length in zip(states, lengths, strict=True)]

"""Prompts as Qwen3-VL reads them in Qwen-Image 2.1, together with the references that they speak of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import ChatEncoder
from trainer_engine.families.common.references import picture_of
from trainer_engine.families.inputs import PromptEmbedding

TASK = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
"""The beginning of the conversation, whose states the network does not see."""
CONVERSATION = TASK + "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
IMAGE_TOKEN = "<|image_pad|>"
SLOT = "<image{number}><|vision_start|>{tokens}<|vision_end|>"
SLOT_PX = 32
"""Edge of the square of pixels that one token of the text encoder stands for: four tokens of the network."""


class PromptEncoder(ChatEncoder):
    """The states of the language model before its last norm.

    A prompt is ``{"embeds": (T, D)}``, with references also ``{"slots": (S,)}``: true for the tokens of images. The network puts four
    tokens of latents in the place of each, so that only the states of the T other tokens are kept.
    """

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        token_limit: int,
        load_image_processor: Callable[[], Any],
    ) -> None:
        super().__init__(load, device, layers=(), token_limit=token_limit)
        self._load_image_processor = load_image_processor

    @staticmethod
    def with_slots(prompt: PromptEmbedding) -> tuple[Tensor, Tensor]:
        """(S, D) and (S,): the states of all tokens, zeros for those of images; and which these are."""
        embeds = prompt["embeds"]
        slots = prompt.get("slots", torch.zeros(len(embeds), dtype=torch.bool))
        states = embeds.new_zeros(len(slots), embeds.shape[-1])
        states[~slots] = embeds
        return states, slots

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D) of each prompt on the CPU; longer ones are cut off. Padding, on the left, has no influence on them."""
        model, _ = self.parts()
        tokens, begin = self._tokens(prompts)
        states = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        real = tokens.attention_mask.bool()
        return [one[mask][begin:].cpu().clone() for one, mask in zip(states, real, strict=True)]

    @torch.no_grad()
    def encode_with(self, prompt: str, references: Sequence[Tensor]) -> PromptEmbedding:
        """A prompt and the references (3, H, W) in [-1, 1] before it, which the model sees as large as the network: edges are multiples of
        32 pixels."""
        model, tokenizer = self.parts()
        seen = self._load_image_processor()(images=[picture_of(one) for one in references], do_resize=False, return_tensors="pt")
        counts = [reference.shape[-2] * reference.shape[-1] // SLOT_PX**2 for reference in references]
        slots = " ".join(SLOT.format(number=number, tokens=IMAGE_TOKEN * count) for number, count in enumerate(counts, start=1))
        tokens, begin = self._tokens([prompt], slots)
        is_image = tokens.input_ids == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        states: Tensor = model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            mm_token_type_ids=is_image.int(),
            pixel_values=seen["pixel_values"].to(self.device),
            image_grid_thw=seen["image_grid_thw"].to(self.device),
        ).last_hidden_state
        found = is_image[0, begin:]
        return {"embeds": states[0, begin:][~found].cpu(), "slots": found.cpu().clone()}

    def _tokens(self, prompts: Sequence[str], slots: str = "") -> tuple[Any, int]:
        """Tokens of the conversations, and how many of them are its beginning. An empty prompt is a space: the model needs one to read."""
        _, tokenizer = self.parts()
        begin, before = (len(tokenizer(text).input_ids) if text else 0 for text in (TASK, slots))
        tokens = tokenizer(
            [CONVERSATION.format(prompt=slots + (prompt or " ")) for prompt in prompts],
            padding=True,
            padding_side="left",
            max_length=self.token_limit + begin + before,
            truncation=True,
            return_tensors="pt",
        )
        return tokens.to(self.device), begin

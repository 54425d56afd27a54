"""Prompts as Qwen2.5-VL reads them in LongCat-Image: text in quotation marks letter by letter, and each prompt with its padding."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation
from diffusers.pipelines.longcat_image.pipeline_longcat_image_edit import calculate_dimensions
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import AFTER_PROMPT, BEFORE_PROMPT
from trainer_engine.families.common.qwen_vl import SeeingEncoder, Seen, states_with
from trainer_engine.families.common.references import picture_of

DESCRIBE = (
    "As an image captioning expert, generate a descriptive text prompt based on an image content, suitable for input to a text-to-image "
    "model."
)
EDIT = (
    "As an image editing expert, first analyze the content and attributes of the input image(s). Then, based on the user's editing "
    "instructions, clearly and precisely determine how to modify the given image(s), ensuring that only the specified parts are altered "
    "and all other aspects remain consistent with the original(s)."
)
"""What the model is asked to do with a prompt, as the published pipelines word it."""
REFERENCE_AREA_PX = 1024 * 1024
"""Area that the pipeline scales a reference to. The text encoder sees half of each edge."""
WORD_WITH_APOSTROPHE = re.compile("[a-zA-Z]+'[a-zA-Z]+")
NO_QUOTATION_MARK = "\ue000"
"""Stands for an apostrophe inside a word; a character without a meaning, which no caption has."""


class QuotingEncoder(SeeingEncoder):
    """The last states of the model for a prompt and its padding, which the network attends to, and for the references before it."""

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        task: str,
        token_limit: int,
        load_image_processor: Callable[[], Any],
    ) -> None:
        """``token_limit``: of a prompt alone."""
        super().__init__(load, device, layers=(-1,), token_limit=token_limit, keeps_padding=True)
        self.task = task
        self._load_image_processor = load_image_processor

    def tokenize(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], slots: str = "") -> BatchEncoding:
        """The tokens of the conversation around each prompt, which is padded to ``token_limit``, and their mask, on the CPU."""
        numbers = [numbers_of(tokenizer, prompt)[: self.token_limit] for prompt in prompts]
        padded = tokenizer.pad({"input_ids": numbers}, padding="max_length", max_length=self.token_limit, return_tensors="pt")
        before, after = (
            torch.tensor(_numbers(tokenizer, text)).expand(len(prompts), -1)
            for text in (BEFORE_PROMPT.format(task=self.task) + slots, AFTER_PROMPT)
        )
        return BatchEncoding(
            {
                "input_ids": torch.cat([before, padded.input_ids, after], dim=1),
                "attention_mask": torch.cat([torch.ones_like(before), padded.attention_mask, torch.ones_like(after)], dim=1),
            }
        )

    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (``token_limit``, D) of each prompt on the CPU; longer ones are cut off."""
        return [self._without_conversation(states) for states in super().encode(prompts)]

    @torch.no_grad()
    def encode_with(self, prompt: str, references: Sequence[Tensor]) -> Tensor:
        """The states (T, D) of the references (3, H, W) in [-1, 1] and of a prompt behind them."""
        model, tokenizer = self.parts()
        seen = Seen.of([_scaled(reference) for reference in references], self._load_image_processor())
        tokens = self.tokenize(tokenizer, [prompt], "".join(seen.slots)).to(self.device)
        of_slots = sum(seen.tokens) + 2 * len(seen.tokens)
        return self._without_conversation(states_with(model, tokens, seen, tokenizer)[0].cpu(), of_slots)

    def _without_conversation(self, states: Tensor, of_slots: int = 0) -> Tensor:
        """The states of all tokens -> those of a prompt and of as many tokens before it."""
        end = len(states) - len(_numbers(self.parts()[1], AFTER_PROMPT))
        return states[end - self.token_limit - of_slots : end].clone()


def numbers_of(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The tokens of a prompt. What stands in quotation marks has a token for each letter at least: the network writes it so.

    NOTE: ``split_quotation`` of diffusers puts a mark in the place of each word with an apostrophe and cannot tell the marks of two
    words apart, so that one of them becomes the other, twice; which one changes from process to process. Here it sees no such word.
    """
    hidden = WORD_WITH_APOSTROPHE.sub(lambda word: word[0].replace("'", NO_QUOTATION_MARK), prompt)
    parts = [(part.replace(NO_QUOTATION_MARK, "'"), is_quoted) for part, is_quoted in split_quotation(hidden)]
    return [number for part, is_quoted in parts for piece in (part if is_quoted else [part]) for number in _numbers(tokenizer, piece)]


def _numbers(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    numbers: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return numbers


def _scaled(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> the image in the size in which the text encoder sees it."""
    image = picture_of(pixels)
    width, height = calculate_dimensions(REFERENCE_AREA_PX, image.width / image.height)
    scaled: Image.Image = VaeImageProcessor().resize(image, height // 2, width // 2)
    return scaled

"""Prompts as Qwen2.5-VL reads them in Qwen-Image: in a conversation whose beginning is left out of what the network sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import AFTER_PROMPT, BEFORE_PROMPT, DESCRIPTION_TASK, DESCRIPTION_TASK_TOKENS
from trainer_engine.families.common.qwen_vl import SeeingEncoder, Seen, states_with
from trainer_engine.families.common.references import picture_of

CONVERSATION = f"{BEFORE_PROMPT}{{prompt}}{AFTER_PROMPT}"


class Task(NamedTuple):
    """What the model is asked to do with a prompt, as the published pipelines word it."""

    text: str
    tokens: int
    """Tokens of the conversation before the prompt, whose states the network does not see."""
    seen_area_px: int = 0
    """Area that each reference is scaled to before the model looks at it; 0 for a task without references."""
    label: str = ""
    """What stands before each reference; ``{}`` is its number, from 1."""


DESCRIBE = Task(DESCRIPTION_TASK, DESCRIPTION_TASK_TOKENS)
EDIT = Task(
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how the user's text "
    "instruction should alter or modify the image. Generate a new image that meets the user's requirements while maintaining consistency "
    "with the original input where appropriate.",
    64,
    seen_area_px=1024 * 1024,
)
EDIT_PLUS = EDIT._replace(seen_area_px=384 * 384, label="Picture {}: ")


class PromptEncoder(SeeingEncoder):
    """The last states of the language model for the prompt and the end of the conversation."""

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        task: Task,
        token_limit: int,
        load_image_processor: Callable[[], Any],
    ) -> None:
        """``token_limit``: without the tokens before the prompt, and without those of references."""
        super().__init__(load, device, layers=(-1,), token_limit=token_limit)
        self.task = task
        self._load_image_processor = load_image_processor

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D) of each prompt on the CPU; longer ones are cut off. Padding has no influence on them."""
        model, _ = self.parts()
        tokens = self._tokens(prompts)
        states = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state.cpu()
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [one[self.task.tokens : length].clone() for one, length in zip(states, lengths, strict=True)]

    @torch.no_grad()
    def encode_with(self, prompt: str, references: Sequence[Tensor]) -> Tensor:
        """The states (T, D) of a prompt and the references (3, H, W) in [-1, 1] before it."""
        model, tokenizer = self.parts()
        seen = Seen.of([_scaled(reference, self.task.seen_area_px) for reference in references], self._load_image_processor())
        slots = "".join(f"{self.task.label.format(number)}{slot}" for number, slot in enumerate(seen.slots, start=1))
        tokens = self._tokens([slots + prompt], of_references=len(tokenizer(slots).input_ids))
        return states_with(model, tokens, seen, tokenizer)[0, self.task.tokens :].cpu().clone()

    def _tokens(self, prompts: Sequence[str], of_references: int = 0) -> Any:
        _, tokenizer = self.parts()
        return tokenizer(
            [CONVERSATION.format(task=self.task.text, prompt=prompt) for prompt in prompts],
            padding=True,
            padding_side="right",
            max_length=self.token_limit + self.task.tokens + of_references,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)


def _scaled(pixels: Tensor, area_px: int) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an image of about this area and the same proportions, as the pipelines scale it."""
    image = picture_of(pixels)
    width, height = calculate_dimensions(area_px, image.width / image.height)
    scaled: Image.Image = VaeImageProcessor().resize(image, height, width)
    return scaled

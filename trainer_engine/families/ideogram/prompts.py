"""Prompts as captions in JSON, which Ideogram 4 was trained on, and as the states of thirteen layers of Qwen3-VL for each token."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.families.common.chat_prompts import Chat, ChatEncoder
from trainer_engine.families.ideogram.spec import TEXT_LAYERS
from trainer_engine.families.inputs import STORED


def as_caption(text: str) -> str:
    """The caption in one line of JSON that a text stands for: the text itself if it is a JSON object, with its keys in their order.

    Any other text becomes the description of the image and of its only element. An empty text stays empty.
    """
    if not text.strip():
        return ""
    document = _object(text)
    if document is None:
        words = " ".join(text.split())
        element = {"type": "obj", "desc": words}
        document = {"high_level_description": words, "compositional_deconstruction": {"background": "", "elements": [element]}}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _object(text: str) -> dict[str, object] | None:
    """The JSON object that the text is, or None."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class LayeredEncoder(ChatEncoder):
    """The states of several layers of the language model, which alternate: number ``d`` of layer ``l`` is at ``d x layers + l``."""

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        token_limit: int,
        writes_json: bool,
    ) -> None:
        """``writes_json``: whether texts are made captions in JSON (``as_caption``)."""
        super().__init__(load, device, layers=TEXT_LAYERS, token_limit=token_limit, as_chat=_in_parts, add_generation_prompt=True)
        self._writes_json = writes_json

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D x layers) of the tokens of each prompt on the CPU, in ``STORED``; longer ones are cut off.

        Each prompt is read alone, so that none of the work is for padding.
        """
        model, tokenizer = self.parts()
        texts = [as_caption(prompt) if self._writes_json else prompt for prompt in prompts]
        chats = [tokenizer.apply_chat_template(self._as_chat(text), tokenize=False, **self._template) for text in texts]
        found = []
        for chat in chats:
            tokens = tokenizer(chat, max_length=self.token_limit, truncation=True, add_special_tokens=False, return_tensors="pt")
            numbers, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
            positions = torch.arange(numbers.shape[1], device=self.device)[None]
            states = model(input_ids=numbers, attention_mask=mask, position_ids=positions, use_cache=False, output_hidden_states=True)
            layered = torch.stack([states.hidden_states[layer] for layer in self._layers], dim=-1)
            found.append(layered[0].flatten(1).to(STORED).cpu())
        return found


def _in_parts(prompt: str) -> Chat:
    return [{"role": "user", "content": [{"type": "text", "text": prompt}]}]

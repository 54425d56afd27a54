"""Prompts as the states of ChatGLM3, padding included."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.pipelines.kolors.text_encoder import ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

from trainer_engine.families.inputs import PromptEmbedding

STATES, POOLED = -2, -1
"""The states for each token are those before the last layer; the pooled prompt is of those behind it, before the last norm."""


class GlmEncoder:
    """What the pipeline of Kolors makes of prompts. The text encoder is loaded when it is first needed."""

    def __init__(self, load: Callable[[], tuple[ChatGLMModel, ChatGLMTokenizer]], device: torch.device, token_limit: int) -> None:
        self._load = load
        self._device = device
        self._token_limit = token_limit
        self._loaded: tuple[ChatGLMModel, ChatGLMTokenizer] | None = None

    def free(self) -> None:
        self._loaded = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """``embeds`` (``token_limit``, D) and ``pooled`` (D,) of each prompt, on the CPU.

        Padding is on the left, at position 0. It attends to the whole prompt, and the network attends to it. The pooled prompt is the state
        of the last token.
        """
        loaded = self._loaded  # another thread may drop it at any time
        if loaded is None:
            self._loaded = loaded = self._load()
        model, tokenizer = loaded
        tokens = tokenizer(list(prompts), padding="max_length", max_length=self._token_limit, truncation=True, return_tensors="pt")
        # NOTE: without return_dict, diffusers 0.42.1 asks the configuration for use_return_dict, which transformers 5 is about to remove.
        given = {"use_cache": False, "output_hidden_states": True, "return_dict": True}
        states = model(**tokens.to(self._device), **given).hidden_states  # each (T, B, D)
        embeds, pooled = states[STATES].transpose(0, 1).cpu(), states[POOLED][-1].cpu()
        return [{"embeds": one.clone(), "pooled": last.clone()} for one, last in zip(embeds, pooled, strict=True)]

"""Prompts as Anima's network takes them: Qwen3 reads the words, and a conditioner asks its states once for each token of T5."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import AnimaTextConditioner
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextParts:
    """What encodes prompts, on its device."""

    encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    conditioner: AnimaTextConditioner
    t5_tokenizer: PreTrainedTokenizerBase


class ConditionedPrompts:
    """The states that the conditioner makes of prompts. Its parts are loaded when they are first needed."""

    def __init__(self, load: Callable[[], TextParts], device: torch.device, *, token_limit: int) -> None:
        self._load = load
        self.device = device
        self.token_limit = token_limit
        self._loaded: TextParts | None = None

    def free(self) -> None:
        self._loaded = None

    def parts(self) -> TextParts:
        loaded = self._loaded  # another thread may drop it at any time
        if loaded is None:
            self._loaded = loaded = self._load()
        return loaded

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D) of each prompt on the CPU, one for each of its tokens of T5; longer prompts are cut off in both tokenizers."""
        parts = self.parts()
        states, is_word = self._read(parts, prompts)
        tokens, is_token = self._tokens(parts.t5_tokenizer, prompts)
        conditioned = parts.conditioner(
            source_hidden_states=states, target_input_ids=tokens, target_attention_mask=is_token, source_attention_mask=is_word
        ).cpu()
        return [one[:length].clone() for one, length in zip(conditioned, is_token.sum(dim=1).tolist(), strict=True)]

    def _read(self, parts: TextParts, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(Qwen3's last states (B, S, D), 0 for padding; which of them may be looked at (B, S)).

        An empty prompt has no tokens of Qwen3. It gets one state of 0, which adds nothing: some kernels have no result without any.
        """
        tokens, is_word = self._tokens(parts.tokenizer, prompts)
        if not tokens.shape[1]:
            tokens, is_word = tokens.new_zeros(len(prompts), 1), is_word.new_zeros(len(prompts), 1)
        states = parts.encoder(input_ids=tokens, attention_mask=is_word).last_hidden_state
        states = states * is_word.to(states).unsqueeze(-1)
        is_seen = is_word.bool()
        is_seen[:, 0] = True  # of an empty prompt the state there is 0; every other prompt begins there
        return states.to(parts.conditioner.dtype), is_seen

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(tokens (B, T), 1 for those that are no padding (B, T))."""
        found = tokenizer(
            list(prompts), padding="longest", padding_side="right", max_length=self.token_limit, truncation=True, return_tensors="pt"
        ).to(self.device)
        return found.input_ids.long(), found.attention_mask.long()

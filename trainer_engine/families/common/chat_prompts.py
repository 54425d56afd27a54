"""Prompts as the states of a language model, in its chat template or as a family writes them around its instruction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding
from trainer_engine.families.modules import free_device_memory

Chat = list[dict[str, Any]]
"""Messages as ``apply_chat_template`` takes them."""
DESCRIPTION_TASK = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the objects and background:"
)
"""What the published pipelines of Qwen-Image and Krea 2 ask of the language model."""
DESCRIPTION_TASK_TOKENS = 34
"""Tokens of the conversation before the prompt with ``DESCRIPTION_TASK``, whose states the network does not see."""
BEFORE_PROMPT, AFTER_PROMPT = "<|im_start|>system\n{task}<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
"""The conversation around a prompt."""


def question(prompt: str) -> Chat:
    """The prompt as the only message, by the user."""
    return [{"role": "user", "content": prompt}]


class ChatEncoder:
    """The states of a language model for prompts in its chat template. The model is loaded when it is first needed."""

    def __init__(
        self,
        load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
        device: torch.device,
        *,
        layers: Sequence[int],
        token_limit: int,
        keeps_padding: bool = False,
        as_chat: Callable[[str], Chat] = question,
        **template: Any,
    ) -> None:
        """``layers`` count the states of the model, beginning with its input; those of several layers stand side by side for each token.

        ``keeps_padding``: the states of the padding are part of the result, since they depend on the prompt and the network attends to
        them. ``template`` are the variables of the chat template.
        """
        self._load = load
        self.device = device
        self._layers = tuple(layers)
        self.token_limit = token_limit
        self._keeps_padding = keeps_padding
        self._as_chat = as_chat
        self._template = template
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def free(self) -> None:
        self._loaded = None

    def parts(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The language model and its tokenizer."""
        loaded = self._loaded  # another thread may drop it at any time
        if loaded is None:
            self._loaded = loaded = self._load()
        return loaded

    def tokenize(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> BatchEncoding:
        """The tokens of each prompt and their mask, (B, ``token_limit``) on the CPU."""
        texts = [tokenizer.apply_chat_template(self._as_chat(prompt), tokenize=False, **self._template) for prompt in prompts]
        tokens: BatchEncoding = tokenizer(
            texts, padding="max_length", max_length=self.token_limit, truncation=True, add_special_tokens=False, return_tensors="pt"
        )
        return tokens

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """The states (T, D x layers) of the tokens of each prompt on the CPU, those of the template included; longer ones are cut off."""
        model, tokenizer = self.parts()
        tokens = self.tokenize(tokenizer, prompts).to(self.device)
        mask = tokens.attention_mask.bool()
        states = model(input_ids=tokens.input_ids, attention_mask=mask, use_cache=False, output_hidden_states=True).hidden_states
        joined = torch.cat([states[layer] for layer in self._layers], dim=-1).cpu()
        if self._keeps_padding:
            return [one.clone() for one in joined]
        return [one[real].clone() for one, real in zip(joined, mask.cpu(), strict=True)]


class ChatFamily(Family):
    """A prompt is ``{"embeds": (T, D)}``: what ``text`` makes of it."""

    text: ChatEncoder
    autoencoder: Autoencoder

    @abstractmethod
    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder of the base model, frozen, on the CPU. Raises ModelUnavailable."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the base model. Raises ModelUnavailable."""

    def load_text(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Both, the text encoder on its device in the precision that was asked for."""
        encoder = self.load_language_model(self.devices.text)
        self.place(encoder, self.options.precision.text_encoder_1_precision, part="text_encoder")
        return encoder, self.load_tokenizer()

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return self.encoder_fingerprint(hashes)

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        return [{"embeds": states} for states in self.text.encode(prompts)]

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.text.free()
        free_device_memory(self.devices.device)


def padded(prompts: Sequence[PromptEmbedding], multiple: int = 1) -> PromptBatch:
    """``embeds`` (B, T, ...), T the length of the longest prompt, rounded up to a ``multiple``.

    ``mask`` (B, T), true for what is no padding, is there only if something is padded.
    """
    states = [prompt["embeds"] for prompt in prompts]
    lengths = torch.tensor([len(one) for one in states])
    longest = -(-int(lengths.max()) // multiple) * multiple
    embeds = states[0].new_zeros(len(states), longest, *states[0].shape[1:])
    for row, state in enumerate(states):
        embeds[row, : len(state)] = state
    mask = torch.arange(longest) < lengths[:, None]
    return {"embeds": embeds} if bool(mask.all()) else {"embeds": embeds, "mask": mask}


def side_by_side(prompts: Sequence[PromptEmbedding]) -> PromptBatch:
    """A tensor (T, D) for each prompt: their lengths are known without a read of the device."""
    return {f"embeds.{number}": prompt["embeds"] for number, prompt in enumerate(prompts)}


def ragged(prompts: PromptBatch, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The states (T, D) of each prompt of a batch that ``side_by_side`` made."""
    return [prompts[f"embeds.{number}"].to(device, dtype) for number in range(len(prompts))]

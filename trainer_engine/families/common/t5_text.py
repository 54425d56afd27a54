"""Prompts as the states of one T5, or of a relative of it, that does not see their padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import Family
from trainer_engine.families.common.autoencoder import Autoencoder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.modules import free_device_memory
from trainer_engine.weights.loading import PartFinder, load_text_encoder, load_tokenizer


class T5PartFinder(PartFinder):
    """Finds the components of a pipeline whose only text encoder is T5."""

    encoder: ClassVar[type[Any]] = T5EncoderModel
    tokenizer: ClassVar[type[Any]] = T5Tokenizer
    tokenizer_name: ClassVar[str] = "T5Tokenizer"
    """As ``model_index.json`` names its class."""

    def load_text_encoder(self, dtype: torch.dtype) -> PreTrainedModel:
        """Frozen, on the CPU. Raises ModelUnavailable."""
        encoder = load_text_encoder(self.encoder, self.find("text_encoder"), dtype)
        assert isinstance(encoder, PreTrainedModel)
        return encoder

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises ModelUnavailable."""
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(self.tokenizer, self.find("tokenizer"))
        return tokenizer

    def copied(self) -> dict[str, CopiedPart]:
        """What the result of a full fine-tune has as the base model has it."""
        find, encoder = self.find, lambda: self.load_text_encoder(torch.bfloat16)
        return {
            "vae": CopiedPart("diffusers", "AutoencoderKL", find("vae"), lambda: self.load_vae(None)),
            "text_encoder": CopiedPart("transformers", self.encoder.__name__, find("text_encoder"), encoder, is_text=True),
            "tokenizer": CopiedPart("transformers", self.tokenizer_name, find("tokenizer"), self.load_tokenizer, is_text=True),
        }


class T5Text:
    """The states of T5 for prompts that are padded to the limit. T5 is loaded when it is first needed."""

    def __init__(
        self, load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]], device: torch.device, *, token_limit: int
    ) -> None:
        """``load`` returns T5 on ``device``, and its tokenizer."""
        self._load = load
        self.device = device
        self.token_limit = token_limit
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def free(self) -> None:
        self._loaded = None

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The states (B, T, D) of all T tokens, and the mask (B, T), 1 for those that are no padding; both on the CPU.

        Longer prompts are cut off. The states of padding depend on the prompt, since padding attends to it.
        """
        loaded = self._loaded  # another thread may drop it at any time
        if loaded is None:
            self._loaded = loaded = self._load()
        encoder, tokenizer = loaded
        tokens = tokenizer(list(prompts), padding="max_length", max_length=self.token_limit, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask
        states = encoder(tokens.input_ids.to(self.device), attention_mask=mask.to(self.device))[0]
        return states.cpu(), mask


class T5Family(Family):
    """Reads prompts through ``text``, and images through ``autoencoder``."""

    parts: T5PartFinder
    text: T5Text
    autoencoder: Autoencoder

    def text_fingerprint(self, hashes: FileHashes) -> str:
        return self.encoder_fingerprint(hashes)

    def encode_images(self, pixels: Tensor, *, exact: bool = False) -> Tensor:
        return self.autoencoder.encode(pixels, exact=exact)

    def load_text(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """T5 on its device in the precision that was asked for, and its tokenizer."""
        encoder = self.parts.load_text_encoder(self.devices.text)
        self.place(encoder, self.options.precision.text_encoder_1_precision, part="text_encoder")
        return encoder, self.parts.load_tokenizer()

    def free_encoders(self) -> None:
        self.autoencoder.free()
        self.text.free()
        free_device_memory(self.devices.device)

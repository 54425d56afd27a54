"""Qwen2.5-VL as the text encoder of a pipeline of flow matching: it reads prompts, and looks at references in flavours that edit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.common.chat_prompts import ChatEncoder, ChatFamily
from trainer_engine.families.common.flow_samplers import FlowPartFinder
from trainer_engine.families.common.pipeline_folder import CopiedPart
from trainer_engine.families.inputs import PromptEmbedding
from trainer_engine.weights.loading import load_text_encoder, load_tokenizer

IMAGE_TOKEN = "<|image_pad|>"


class VisionPartFinder(FlowPartFinder):
    """Finds the parts of a pipeline with this text encoder. ``FamilySpec.reference_folders`` names the folder of its image processor."""

    @property
    def edits(self) -> bool:
        """Whether the flavour looks at references."""
        return (self.options.model_flavour or self.spec.default_flavour) in self.spec.takes_references

    def load_whole_text_encoder(self, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
        encoder = load_text_encoder(Qwen2_5_VLForConditionalGeneration, self.find("text_encoder"), dtype)
        assert isinstance(encoder, Qwen2_5_VLForConditionalGeneration)
        return encoder

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        """The text encoder without its head, and without its part for images if there are none to look at."""
        whole = self.load_whole_text_encoder(dtype).model
        model: PreTrainedModel = whole if self.edits else whole.language_model
        return model

    def load_image_processor(self) -> Qwen2VLImageProcessorPil:
        """What makes patches of the images that the text encoder looks at."""
        processor: Qwen2VLImageProcessorPil = load_tokenizer(Qwen2VLImageProcessorPil, self.find(self.spec.reference_folders[0]))
        return processor

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = load_tokenizer(Qwen2Tokenizer, self.find("tokenizer"))
        return tokenizer

    def copied_text(self) -> dict[str, CopiedPart]:
        """The text encoder and its tokenizer, as the base model has them."""
        kind, find = Qwen2_5_VLForConditionalGeneration.__name__, self.find
        encoder = CopiedPart("transformers", kind, find("text_encoder"), lambda: self.load_whole_text_encoder(torch.bfloat16), is_text=True)
        tokenizer = CopiedPart("transformers", Qwen2Tokenizer.__name__, find("tokenizer"), self.load_tokenizer, is_text=True)
        return {"text_encoder": encoder, "tokenizer": tokenizer}


class SeeingEncoder(ChatEncoder):
    """Reads prompts, and looks at their references."""

    @abstractmethod
    def encode_with(self, prompt: str, references: Sequence[Tensor]) -> Tensor:
        """The states (T, D) of a prompt and of the references (3, H, W) in [-1, 1] before it, on the CPU."""


class SeeingFamily(ChatFamily):
    """A prompt is ``{"embeds": (T, D)}``: the states of a prompt and, if the flavour edits, of the references before it."""

    parts: VisionPartFinder
    text: SeeingEncoder

    @property
    @abstractmethod
    def task(self) -> object:
        """What the text encoder is asked to do; embeddings of another task are others."""

    def load_language_model(self, dtype: torch.dtype) -> PreTrainedModel:
        return self.parts.load_language_model(dtype)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.parts.load_tokenizer()

    @property
    def prompts_see_references(self) -> bool:
        return self.parts.edits

    def text_fingerprint(self, hashes: FileHashes) -> str:
        usual = super().text_fingerprint(hashes)
        return f"{usual} {self.parts.find(self.spec.reference_folders[0]).fingerprint(hashes)} {self.task}" if self.parts.edits else usual

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        if not any(references):
            return super().encode_prompts(prompts)
        found = zip(prompts, references, strict=True)  # each alone: their references may have any sizes
        return [{"embeds": self.text.encode_with(prompt, seen) if seen else self.text.encode([prompt])[0]} for prompt, seen in found]


class Seen(NamedTuple):
    """Images as the model looks at them."""

    patches: Tensor
    grids: Tensor
    """(images, 3): frames, rows and columns of the patches."""
    tokens: tuple[int, ...]
    """Of each image."""

    @classmethod
    def of(cls, pictures: Sequence[Image.Image], processor: Qwen2VLImageProcessorPil) -> Seen:
        found = processor(images=list(pictures), return_tensors="pt")
        counts = found["image_grid_thw"].prod(dim=1) // processor.merge_size**2
        return cls(found["pixel_values"], found["image_grid_thw"], tuple(counts.tolist()))

    @property
    def slots(self) -> list[str]:
        """What stands in a prompt in the place of each image."""
        return [f"<|vision_start|>{IMAGE_TOKEN * count}<|vision_end|>" for count in self.tokens]


def states_with(model: PreTrainedModel, tokens: BatchEncoding, seen: Seen, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The last states (1, T, D) of one prompt, whose ``tokens`` hold the slots of images. All of it is on the device of ``tokens``.

    NOTE: the model needs to know which tokens are of images: without it transformers 5 gives them the positions of text.
    """
    numbers: Tensor = tokens.input_ids
    is_image = numbers == tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    states: Tensor = model(
        input_ids=numbers,
        attention_mask=tokens.attention_mask,
        mm_token_type_ids=is_image.int(),
        pixel_values=seen.patches.to(numbers.device),
        image_grid_thw=seen.grids.to(numbers.device),
    ).last_hidden_state
    return states

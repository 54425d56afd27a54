"""Families whose prompts go through CLIP text encoders, which are frozen or trained together with the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from trainer_engine.config.family_parts import tokenizer_of
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.sdnq_settings import weights_identity
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.families.base import Family
from trainer_engine.families.common.clip_text import (
    ClipEncoder,
    ClipOutput,
    ClipStates,
    ClipTokens,
    clip_states,
    tokenize,
    unread_parameters,
)
from trainer_engine.families.inputs import PromptBatch, PromptEmbedding
from trainer_engine.families.modules import unwrap
from trainer_engine.runtime.devices import Devices
from trainer_engine.weights.loading import load_text_encoder, part_in


class ClipFamily(Family):
    """Encodes prompts once if the text encoders are frozen, and in every step if they are trained.

    With frozen encoders a cached prompt is what the network reads (``join_states``). With trained ones it is the prompt's tokens,
    ``{"<encoder>.input_ids": (77,), "<encoder>.attention_mask": (77,)}``: nothing that a trained encoder made is kept beyond its step.
    """

    def __init__(self, options: TrainingOptions, devices: Devices) -> None:
        super().__init__(options, devices)
        self._encoders: dict[str, ClipEncoder] = {}
        self._tokenizers: dict[str, CLIPTokenizer] = {}

    @property
    @abstractmethod
    def clip_outputs(self) -> Mapping[str, ClipOutput]:
        """What the network reads of each text encoder, by the encoder's name."""

    @abstractmethod
    def load_encoder(self, name: str, dtype: torch.dtype) -> ClipEncoder:
        """A text encoder of the base model, frozen, on the CPU. Raises ModelUnavailable."""

    @abstractmethod
    def load_tokenizer_of(self, name: str) -> CLIPTokenizer:
        """The tokenizer of a text encoder. Raises ModelUnavailable."""

    @abstractmethod
    def join_states(self, states: Mapping[str, ClipStates]) -> PromptBatch:
        """What the network reads, from what each text encoder made of the prompts."""

    @property
    def trains_text_encoders(self) -> bool:
        return bool(self.spec.trained_text_encoders)

    # ---- cached prompts ----

    def text_fingerprint(self, hashes: FileHashes) -> str:
        if self.trains_text_encoders:
            return "tokens " + " ".join(self.parts.find(tokenizer_of(name)).fingerprint(hashes) for name in self.clip_outputs)
        names = [part for name in self.clip_outputs for part in (name, tokenizer_of(name))]
        weights = " ".join(self.parts.find(name).fingerprint(hashes) for name in names)
        precisions = " ".join(weights_identity(precision, self.options) for precision in self._precisions.values())
        return f"{weights} {self.devices.text} skip {self.options.model.clip_skip} {precisions}"

    @property
    def _precisions(self) -> dict[str, str]:
        chosen = self.options.precision
        by_name = {"text_encoder": chosen.text_encoder_1_precision, "text_encoder_2": chosen.text_encoder_2_precision}
        return {name: by_name[name] for name in self.clip_outputs}

    def encode_prompts(self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]] = ()) -> list[PromptEmbedding]:
        tokens = {name: tokenize(self._tokenizer(name), prompts) for name in self.clip_outputs}
        if self.trains_text_encoders:
            batch = {f"{name}.{field}": tensor for name, found in tokens.items() for field, tensor in found._asdict().items()}
        else:
            batch = self._encode(tokens)
        return [{name: tensor[number].clone() for name, tensor in batch.items()} for number in range(len(prompts))]

    @torch.no_grad()
    def _encode(self, tokens: Mapping[str, ClipTokens]) -> PromptBatch:
        states: dict[str, ClipStates] = {}
        for name, output in self.clip_outputs.items():
            found = clip_states(self._encoder(name), _moved(tokens[name], self.devices.device), output)
            states[name] = ClipStates(*(tensor.cpu() for tensor in found))
        return self.join_states(states)

    def _encoder(self, name: str) -> ClipEncoder:
        encoder = self._encoders.get(name)  # another thread may let go of it at any time
        if encoder is None:
            encoder = self.load_encoder(name, self.devices.text)
            self.place(encoder, self._precisions[name], part=name)
            self._encoders[name] = encoder
        return encoder

    def _tokenizer(self, name: str) -> CLIPTokenizer:
        tokenizer = self._tokenizers.get(name)
        if tokenizer is None:
            self._tokenizers[name] = tokenizer = self.load_tokenizer_of(name)
        return tokenizer

    def free_text_encoders(self) -> None:
        """Drop the weights of the frozen text encoders; trained ones belong to the network."""
        self._encoders, self._tokenizers = {}, {}

    def collate_prompts(self, prompts: Sequence[PromptEmbedding]) -> PromptBatch:
        """Prompts of CLIP have one length: each tensor is stacked along a new first dimension."""
        return {name: torch.stack([prompt[name] for prompt in prompts]) for name in prompts[0]}

    # ---- text encoders that are trained ----

    def load_text_component(self, name: str, dtype: torch.dtype, folder: Path | None = None) -> ClipEncoder:
        """A text encoder of the base model, or one that ``save_component`` wrote into ``folder``."""
        if folder is None:
            return self.load_encoder(name, dtype)
        return cast("ClipEncoder", load_text_encoder(self.clip_outputs[name].encoder_class, part_in(folder), dtype))

    def unread_parameters(self, network: nn.Module) -> Sequence[nn.Parameter]:
        encoders = self.trained_encoders(network)
        return [weight for name, encoder in encoders.items() for weight in unread_parameters(encoder, self.clip_outputs[name])]

    def trained_encoders(self, network: nn.Module) -> dict[str, ClipEncoder]:
        """The trained text encoders by name, from the bare network of a run; none if they are frozen."""
        modules = self.trained_modules(network)
        return {name: cast("ClipEncoder", modules[name]) for name in self.spec.trained_text_encoders}

    def network_prompts(self, network: nn.Module, prompts: PromptBatch) -> PromptBatch:
        """What the network reads of prompts as ``collate_prompts`` returns them. ``network`` may be wrapped.

        Trained text encoders encode them here, and get the gradients of the prediction.
        """
        if not self.trains_text_encoders:
            return prompts
        return self.encode_live(self.trained_encoders(unwrap(network)), prompts, partial(self.call, network))

    def encode_live(self, encoders: Mapping[str, nn.Module], prompts: PromptBatch, call: Callable[..., Any] | None = None) -> PromptBatch:
        """Encode tokens with trained text encoders; ``call(name, ...)`` runs an encoder in its wrapper."""
        states: dict[str, ClipStates] = {}
        for name, encoder in encoders.items():
            tokens = _moved(ClipTokens(*(prompts[f"{name}.{field}"] for field in ClipTokens._fields)), self.devices.device)
            wrapped = partial(call, name) if call else None
            states[name] = clip_states(cast("ClipEncoder", encoder), tokens, self.clip_outputs[name], wrapped)
        return self.join_states(states)


def _moved(tokens: ClipTokens, device: torch.device) -> ClipTokens:
    return ClipTokens(*(tensor.to(device) for tensor in tokens))

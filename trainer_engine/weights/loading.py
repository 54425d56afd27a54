"""Loading a part of a pipeline with the library that it belongs to, or saying what is wrong with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin
from safetensors import safe_open

from trainer_engine.config.families import FamilySpec
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.files import read_small_json
from trainer_engine.weights.hub import Part, Source, loading, refuse_gaps

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def part_in(folder: Path) -> Part:
    """A folder that holds ``config.json`` and weights, such as one of a checkpoint."""
    return Part(Source(str(folder)), folder)


def load_diffusers(cls: type[Any], part: Part, dtype: torch.dtype | None) -> Any:
    """A diffusers model; ``dtype`` None keeps the type of the weights. Raises ModelUnavailable."""
    with loading(part):
        model, info = cls.from_pretrained(
            part.folder,
            torch_dtype=dtype or stored_dtype(part),
            variant=part.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    refuse_gaps(part, list(info["missing_keys"]), [str(entry) for entry in info["mismatched_keys"]])
    return model


def load_text_encoder(cls: type[Any], part: Part, dtype: torch.dtype) -> Any:
    """A transformers model, frozen, to be asked only. Raises ModelUnavailable."""
    with loading(part):
        encoder, info = cls.from_pretrained(
            part.folder,
            dtype=dtype,
            variant=part.variant,
            use_safetensors=True,
            weights_only=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    refuse_gaps(part, list(info["missing_keys"]), [str(entry) for entry in info["mismatched_keys"]])
    return encoder.eval().requires_grad_(False)


def load_tokenizer(cls: type[Any], part: Part) -> Any:
    """Raises ModelUnavailable."""
    with loading(part):
        return cls.from_pretrained(part.folder, trust_remote_code=False, local_files_only=True)


def stored_dtype(part: Part) -> torch.dtype:
    """The type of the first floating-point tensor of a part's weights; float32 where there is none."""
    for path in part.weights():
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                dtype = file.get_slice(name).get_dtype()
                if dtype in FLOATS:
                    return FLOATS[dtype]
    return torch.float32


def read_scheduler_config(part: Part) -> dict[str, Any]:
    """Raises ModelUnavailable."""
    with loading(part):
        config = read_small_json(part.folder / "scheduler_config.json")
        if not isinstance(config, dict):
            raise TypeError("scheduler_config.json holds no object")
    return config


def make_scheduler(config: Mapping[str, Any], name: str, changes: Mapping[str, Any], source: str) -> SchedulerMixin:
    """The sampler of diffusers called ``name`` on a noise schedule. Raises ModelUnavailable where there is none."""
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        message = f"{source} names a scheduler {name!r} that diffusers does not have."
        raise ModelUnavailable(message, hint="set validation_noise_scheduler")
    scheduler: SchedulerMixin = cls.from_config({**config, **changes})
    return scheduler


class PartFinder(ABC):
    """The components of one base model by name. Nothing is loaded before it is asked for, and nothing is kept."""

    def __init__(self, options: ModelOptions, spec: FamilySpec) -> None:
        self.options = options
        self.base = Source(
            options.pretrained_model_name_or_path or spec.repository(options.model_flavour), options.revision, options.variant
        )
        self._found: dict[str, Part] = {}

    def find(self, name: str) -> Part:
        """Raises ModelUnavailable where there is no such part."""
        if name not in self._found:
            self._found[name] = self.search(name)
        return self._found[name]

    @abstractmethod
    def search(self, name: str) -> Part:
        """Look for a part for the first time. Raises ModelUnavailable."""

    def load_vae(self, dtype: torch.dtype | None) -> AutoencoderKL:
        """``dtype`` None keeps the type of the weights."""
        vae = load_diffusers(AutoencoderKL, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderKL)
        return vae

    def scheduler_config(self) -> dict[str, Any]:
        """Raises ModelUnavailable."""
        return read_scheduler_config(self.find("scheduler"))

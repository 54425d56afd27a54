"""Loading the components of a PixArt Sigma pipeline, each from where it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel, SchedulerMixin
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5Tokenizer

from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.options.model import ModelOptions
from trainer_engine.families.pixart_sigma.card import CARD
from trainer_engine.hub import Part, Source, find_part, loading, refuse_gaps

COMPANION = "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"
"""Some of the published repositories hold the transformer alone; their authors keep everything else here."""

SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_small"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
}
"""``validation_noise_scheduler`` -> class and what it needs besides the noise schedule. Latents are not clipped to [-1, 1]."""


class Parts:
    """The components by name. Nothing is loaded before it is asked for, and nothing is kept."""

    def __init__(self, options: ModelOptions) -> None:
        self.options = options
        self.base = Source(
            options.pretrained_model_name_or_path or CARD.repository(options.model_flavour), options.revision, options.variant
        )
        self._found: dict[str, Part] = {}

    def find(self, name: str) -> Part:
        """Raises ModelUnavailable where neither the base model nor its companion has the part."""
        if name not in self._found:
            self._found[name] = self._search(name)
        return self._found[name]

    def _search(self, name: str) -> Part:
        replaced = {
            "vae": self.options.pretrained_vae_model_name_or_path,
            "text_encoder": self.options.pretrained_t5_model_name_or_path,
            "tokenizer": self.options.pretrained_t5_model_name_or_path,
        }.get(name)
        part = find_part(Source(replaced), name, bare=name == "vae") if replaced else find_part(self.base, name)
        if part is None and not replaced and not self.base.is_local and name != "transformer":
            part = find_part(Source(COMPANION), name)
        if part is None:
            raise ModelUnavailable(
                f"{replaced or self.base.name} has no folder {name}.",
                hint="the folder of a PixArt Sigma pipeline in the diffusers layout is needed",
            )
        return part

    def load_transformer(self, dtype: torch.dtype, folder: Path | None = None) -> PixArtTransformer2DModel:
        """From the base model, or from a folder that holds ``config.json`` and weights."""
        part = Part(Source(str(folder)), folder) if folder else self.find("transformer")
        network = _load_diffusers(PixArtTransformer2DModel, part, dtype)
        assert isinstance(network, PixArtTransformer2DModel)
        network.register_to_config(_name_or_path=self.base.name)
        return network

    def load_vae(self, dtype: torch.dtype | None) -> AutoencoderKL:
        """``dtype`` None keeps the type of the weights."""
        vae = _load_diffusers(AutoencoderKL, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderKL)
        return vae.eval().requires_grad_(False)

    def load_text_encoder(self, dtype: torch.dtype) -> T5EncoderModel:
        part = self.find("text_encoder")
        with loading(part):
            encoder, info = T5EncoderModel.from_pretrained(
                part.folder, dtype=dtype, variant=part.variant, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
        refuse_gaps(part, list(info["missing_keys"]), [str(entry) for entry in info["mismatched_keys"]])
        return encoder.eval().requires_grad_(False)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        part = self.find("tokenizer")
        with loading(part):
            tokenizer: PreTrainedTokenizerBase = T5Tokenizer.from_pretrained(part.folder, local_files_only=True)
        return tokenizer

    def scheduler_config(self) -> dict[str, Any]:
        """Raises ModelUnavailable."""
        part = self.find("scheduler")
        with loading(part):
            config = json.loads((part.folder / "scheduler_config.json").read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise TypeError("scheduler_config.json holds no object")
        return config

    def make_scheduler(self, prediction_type: str, sampler: str | None = None) -> SchedulerMixin:
        """The base model's own sampler, or the one called so, on the base model's noise schedule."""
        config = self.scheduler_config()
        name, needs = SAMPLERS[sampler] if sampler else (str(config.get("_class_name")), {})
        cls = getattr(diffusers, name, None)
        if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
            raise ModelUnavailable(
                f"{self.base.name} names a scheduler {name!r} that diffusers does not have.", hint="set validation_noise_scheduler"
            )
        scheduler: SchedulerMixin = cls.from_config({**config, **needs, "prediction_type": prediction_type})
        return scheduler


def _load_diffusers(cls: type[Any], part: Part, dtype: torch.dtype | None) -> Any:
    with loading(part):
        model, info = cls.from_pretrained(
            part.folder,
            torch_dtype=dtype or _stored_dtype(part),
            variant=part.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    refuse_gaps(part, list(info["missing_keys"]), [str(entry) for entry in info["mismatched_keys"]])
    return model


def _stored_dtype(part: Part) -> torch.dtype:
    """The type of the first floating-point tensor of a part's weights; float32 where there is none."""
    for path in part.weights():
        with safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                dtype = file.get_slice(name).get_dtype()
                if dtype in ("F16", "BF16", "F32"):
                    return {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    return torch.float32

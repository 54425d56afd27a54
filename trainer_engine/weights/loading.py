"""Loads the components of a pipeline with diffusers and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import diffusers
import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, SchedulerMixin
from safetensors import safe_open
from torch import nn

from trainer_engine.config.components import ComponentSource, component_source, stated_by_network
from trainer_engine.config.encoder_fit import AUTOENCODER, foreign_autoencoder
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.part_fit import foreign_network, missing_vocabularies, unfit_encoders
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.files import read_small_json
from trainer_engine.weights import one_file
from trainer_engine.weights.hub import Part, Source, find_part, hub_cache, loading, refuse_gaps

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def part_in(folder: Path) -> Part:
    """The component in a folder with ``config.json`` and weights, for example of a checkpoint."""
    return Part(Source(str(folder)), folder)


def load_diffusers(cls: type[Any], part: Part, dtype: torch.dtype | None) -> Any:
    """Load a diffusers model. ``dtype`` None keeps the type of the weights. Raises ModelUnavailable.

    In a context of ``torch.device("meta")`` no weights are read: all parameters of the model are 0.
    """
    if torch.get_default_device().type == "meta":
        return _without_weights(cls, part, dtype or stored_dtype(part))
    if part.file:
        return one_file.load_model(cls, part, dtype or stored_dtype(part))
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


def _without_weights(cls: type[Any], part: Part, dtype: torch.dtype) -> nn.Module:
    """A model of the configuration of a part, with its buffers. Its parameters are 0 and take no memory until they are written."""
    with loading(part), torch.device("cpu"), init_empty_weights(include_buffers=False):
        model: nn.Module = cls.from_config(cls.load_config(part.folder, local_files_only=True))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # NOTE: torch.zeros would write them; numpy takes pages that the system gives only when they are written.
            zeros = torch.from_numpy(np.zeros(parameter.numel() * dtype.itemsize, np.uint8))
            module.register_parameter(name, nn.Parameter(zeros.view(dtype).view(parameter.shape)))
    return model.eval()


def load_text_encoder(cls: type[Any], part: Part, dtype: torch.dtype | None) -> Any:
    """Load a transformers model, frozen and in evaluation mode. ``dtype`` None keeps the type of the weights. Raises ModelUnavailable."""
    dtype = dtype or stored_dtype(part)
    if part.file:
        return one_file.load_clip(cls, part, dtype).eval().requires_grad_(False)
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
    """Load a tokenizer. Raises ModelUnavailable."""
    with loading(part):
        return cls.from_pretrained(part.folder, trust_remote_code=False, local_files_only=True)


def stored_dtype(part: Part) -> torch.dtype:
    """The type of the first floating-point tensor of the weights; float32 if there is none."""
    for path in part.weights():
        with safe_open(path, framework="pt") as file:
            for name in sorted(key for key in file.keys() if key.startswith(part.prefix)):  # noqa: SIM118
                dtype = file.get_slice(name).get_dtype()
                if dtype in FLOATS:
                    return FLOATS[dtype]
    return torch.float32


def read_scheduler_config(part: Part) -> dict[str, Any]:
    """Read ``scheduler_config.json``. Raises ModelUnavailable."""
    return _read_config(part, "scheduler_config.json")


def read_network_config(part: Part) -> dict[str, Any]:
    """Read the ``config.json`` of a network. Raises ModelUnavailable."""
    return _read_config(part, "config.json")


def _read_config(part: Part, name: str) -> dict[str, Any]:
    with loading(part):
        config = read_small_json(part.folder / name)
        if not isinstance(config, dict):
            raise TypeError(f"{name} does not contain an object")
    return config


def make_scheduler(config: Mapping[str, Any], name: str, changes: Mapping[str, Any], source: str) -> SchedulerMixin:
    """Create the diffusers sampler ``name`` for a noise schedule. Raises ModelUnavailable if diffusers has no such sampler,
    or needs a package for it that is not installed."""
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)):
        message = f"{source} names a scheduler {name!r} that diffusers does not have."
        raise ModelUnavailable(message, hint="set validation_noise_scheduler")
    try:
        scheduler: SchedulerMixin = cast("Any", cls).from_config({**config, **changes})
    except ImportError as error:
        raise ModelUnavailable(
            f"The noise schedule of {source} needs a package: {error}", hint="install it, or use another base"
        ) from error
    return scheduler


ZERO_TERMINAL_SNR: Mapping[str, Any] = MappingProxyType({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})
"""Lin et al., 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed": samplers must start at the last timestep."""


class PartFinder:
    """Finds and loads the components of one base model by name. It keeps no loaded component."""

    def __init__(self, options: ModelOptions, spec: FamilySpec) -> None:
        self.options = options
        self.spec = spec
        self.base = Source(
            options.pretrained_model_name_or_path or spec.repository(options.model_flavour), options.revision, options.variant
        )
        self._found: dict[str, Part] = {}

    def find(self, name: str) -> Part:
        """The component ``name``. Raises ModelUnavailable if the model has none."""
        if name not in self._found:
            self._found[name] = self.search(name)
        return self._found[name]

    def find_if_present(self, name: str) -> Part | None:
        """A component that a base model may lack. Raises ModelUnavailable if its source cannot be reached."""
        if name not in self._found:
            place = component_source(self.options, self.spec, name)
            found = find_part(Source(place.name, place.revision, place.variant), place.folder, bare=place.is_bare)
            if found is None:
                return None
            self._found[name] = found
        return self._found[name]

    def search(self, name: str) -> Part:
        """Search a component; ``find`` caches the result. Raises ModelUnavailable."""
        place = component_source(self.options, self.spec, name)
        flavour = self.options.model_flavour
        if place.config is not None:
            prefix = one_file.prefix_in_file(place, self.spec, flavour)
            return Part(Source(place.name), self._in_folder(place.config, name, with_weights=False).folder, Path(place.name), prefix)
        part = self._in_folder(place, name)
        if name == AUTOENCODER:
            one_file.refuse(foreign_autoencoder(self.options, self.spec, hub_cache()))
        if name in self._matched_folders:
            one_file.refuse(foreign_network(self.options, self.spec, hub_cache()))
            one_file.refuse(next(unfit_encoders(self.options, self.spec, hub_cache()), None))
        if name in self.spec.prompts.tokenizer_folders:
            one_file.refuse(next(missing_vocabularies(self.options, self.spec, hub_cache()), None))
        if name in self.spec.network_folders:
            one_file.refuse_other_network(part, place.option, self.spec, flavour)
        return part

    @property
    def _matched_folders(self) -> frozenset[str]:
        """The components whose configurations must fit one another."""
        states = self.spec.prompts.states
        read = (folder for one in states for folder in (*one.folders, one.reader))
        return frozenset((*read, self.spec.components[self.spec.network].folder))

    def _in_folder(self, place: ComponentSource, name: str, *, with_weights: bool = True) -> Part:
        source = Source(place.name, place.revision, place.variant)
        part = find_part(source, place.folder, bare=place.is_bare, with_weights=with_weights)
        if part is None and place.companion and not source.is_local:
            part = find_part(Source(place.companion), name, with_weights=with_weights)
        if part is None:
            hint = f"the folder of a {self.spec.title} pipeline in the diffusers layout is needed"
            raise ModelUnavailable(f"{place.name} has no folder {place.folder}.", hint=hint)
        return part

    def load_vae(self, dtype: torch.dtype | None) -> AutoencoderKL:
        """Load the autoencoder. ``dtype`` None keeps the type of the weights."""
        vae = load_diffusers(AutoencoderKL, self.find("vae"), dtype)
        assert isinstance(vae, AutoencoderKL)
        return vae

    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule of the base model; with ``rescale_betas_zero_snr`` it ends in pure noise. Raises ModelUnavailable.

        What a network in one file states of its schedule overrides the configuration.
        """
        config = {**(self.spec.schedule or read_scheduler_config(self.find("scheduler"))), **stated_by_network(self.options, self.spec)}
        return {**config, **ZERO_TERMINAL_SNR} if self.options.rescale_betas_zero_snr else config

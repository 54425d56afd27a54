"""The torch-free facts of each model family: one ``FamilySpec`` for each folder of ``trainer_engine/families``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from trainer_engine import families


@dataclass(frozen=True)
class FamilySpec:
    """The torch-free facts of one family."""

    name: str
    """The value of ``model_family``."""
    title: str
    description: str
    flavours: Mapping[str, str]
    """Flavour -> repository id on the hub."""
    default_flavour: str
    model_types: tuple[str, ...]
    """Supported values of ``model_type``: ``full``, ``lora``."""
    objective: str
    """Training target of the published weights: ``epsilon``, ``flow_matching``."""
    alignment_px: int
    """Image edges must be multiples of this."""
    token_limit: int
    """Longest prompt, in tokens."""
    latent_channels: int
    vae_scale_factor: int
    """Pixels per latent cell, each way."""
    text_encoders: tuple[str, ...]
    text_joins_sequence: bool = False
    """Whether the network processes prompt and image tokens as one sequence."""
    aliases: tuple[str, ...] = ()
    prediction_types: tuple[str, ...] = ()
    """Supported values of ``prediction_type``."""
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Option defaults of this family. They override the registry's; the environment overrides them."""
    flavour_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> option defaults that override the family's."""
    parameters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> number of parameters of the trained network, for estimates."""
    text_encoder_folders: tuple[str, ...] = ("text_encoder",)
    """Subfolders of a pipeline that hold text encoders."""
    network_folder: str = "transformer"
    """Subfolder of a pipeline that holds the network."""
    t5_folder: str = "text_encoder"
    """The one of ``text_encoder_folders`` that ``pretrained_t5_model_name_or_path`` replaces."""
    companion: str = ""
    """Repository with the components that the repositories of some flavours lack; empty if all are complete."""
    architectures: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> name of its architecture in Stability AI's model metadata specification, if it has one."""
    module_classes: tuple[str, ...] = ()
    """Class names of the network's modules that a LyCORIS file may target."""
    class_aliases: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Class name in files for older libraries -> the class names that it means."""
    lycoris_start: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """The LyCORIS file of a new environment."""
    lora_targets: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    """Name of a set -> endings of the names of the modules that get a standard adapter."""
    default_lora_target: str = ""
    lora_target_option: str = ""
    """The family's option that chooses one of ``lora_targets``; empty if it has none."""
    base_precisions: tuple[str, ...] = ()
    """Supported quantised types of the frozen base weights."""
    comfyui_prefix: str = "diffusion_model."
    """Prefix of module names in adapter files for ComfyUI."""
    activation_share: float = 1.0
    """Activation memory relative to that of PixArt's network with the same layers, measured with ``make bench``."""
    flavour_token_limits: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> its longest prompt in tokens, if it differs from ``token_limit``."""
    preview_decoder: str = ""
    """Repository of the Tiny AutoEncoder that decodes previews; empty if the family has none."""
    samplers: tuple[str, ...] = ()
    """Supported values of ``validation_noise_scheduler``."""
    generation_options: frozenset[str] = frozenset()
    """Options of validation images that this family's pipeline supports and others may not."""
    generation_multiple_px: int = 16
    """Edges of generated images are multiples of this: a latent cell times the network's patch."""
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> license of its weights in the hub's metadata; it also covers models trained from them."""
    takes_references: frozenset[str] = frozenset()
    """Flavours that accept reference images."""
    needs_references: frozenset[str] = frozenset()
    """Flavours that require reference images."""

    @property
    def components(self) -> tuple[str, ...]:
        """The components of a base model that a run loads: subfolders of a diffusers pipeline."""
        return (self.network_folder, "vae", *self.text_encoder_folders, *map(tokenizer_of, self.text_encoder_folders), "scheduler")

    def defaults_of(self, flavour: str | None) -> Mapping[str, Any]:
        """Returns the option defaults of a flavour, including the family's."""
        return {**self.defaults, **self.flavour_defaults.get(flavour or self.default_flavour, {})}

    def tokens_of(self, flavour: str | None) -> int:
        """Returns the longest prompt of a flavour, in tokens."""
        return self.flavour_token_limits.get(flavour or self.default_flavour, self.token_limit)

    def repository(self, flavour: str | None) -> str:
        """Returns the hub repository of a flavour. Raises KeyError if the family has no such flavour."""
        return self.flavours[flavour or self.default_flavour]


def tokenizer_of(text_encoder: str) -> str:
    """Returns the tokenizer's subfolder for that of a text encoder: ``text_encoder_2`` -> ``tokenizer_2``."""
    return text_encoder.replace("text_encoder", "tokenizer")


SHARED = "common"
"""Folder in ``families`` with code that families share."""


@cache
def specs() -> Mapping[str, FamilySpec]:
    """Returns the spec of every family that has a folder, by name."""
    found: dict[str, FamilySpec] = {}
    for module in pkgutil.iter_modules(families.__path__):
        if module.ispkg and module.name != SHARED:
            spec: FamilySpec = importlib.import_module(f"{families.__name__}.{module.name}.spec").SPEC
            found[spec.name] = spec
    return MappingProxyType(found)


def find_spec(name: str) -> FamilySpec | None:
    """Returns the spec of a family by its name or an alias, ignoring case, or None."""
    wanted = name.strip().lower()
    for spec in specs().values():
        if wanted == spec.name or wanted in spec.aliases:
            return spec
    return None


FORMAT_FAMILIES = frozenset(
    [
        "ace_step",
        "anima",
        "auraflow",
        "boogu_image",
        "chroma",
        "cosmos2image",
        "cosmos3",
        "deepfloyd",
        "ernie",
        "flux",
        "flux2",
        "heartmula",
        "hidream",
        "hunyuanvideo",
        "ideogram",
        "infinitetalk",
        "kandinsky5-image",
        "kandinsky5-video",
        "kolors",
        "krea2",
        "longcat_image",
        "longcat_video",
        "ltxvideo",
        "ltxvideo2",
        "lumina2",
        "mageflow",
        "minimaxh3",
        "minimaxmusic",
        "omnigen",
        "pixart_sigma",
        "qwen_image",
        "sana",
        "sanavideo",
        "sd1x",
        "sd2x",
        "sd3",
        "sdxl",
        "stable_cascade",
        "wan",
        "wan_s2v",
        "z_image",
        "z_image_omni",
        "zlab_i1",
    ]
)
"""Every family name of the configuration format, implemented or not."""


def known_but_missing(name: str) -> bool:
    """Whether the format has this family but it is not implemented yet."""
    return name.strip().lower() in FORMAT_FAMILIES and find_spec(name) is None

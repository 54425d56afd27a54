"""What is known of a model family without loading torch: one card a folder in ``trainer_engine/families``."""

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
class FamilyCard:
    """The torch-free facts of one family."""

    name: str
    """What ``model_family`` says."""
    title: str
    description: str
    flavours: Mapping[str, str]
    """Flavour -> repository id on the hub."""
    default_flavour: str
    model_types: tuple[str, ...]
    """What can be trained here: ``full``, ``lora``."""
    objective: str
    """Training target of the published weights: ``epsilon``."""
    alignment_px: int
    """Image edges are multiples of this."""
    token_limit: int
    """Longest prompt, in tokens."""
    latent_channels: int
    vae_scale_factor: int
    """Pixels per latent cell, each way."""
    text_encoders: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    prediction_types: tuple[str, ...] = ()
    """Values of ``prediction_type`` that make sense for this family."""
    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Option defaults of this family; they stand between the registry's and the environment's."""
    parameters: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Flavour -> parameters of the network that is trained, for estimates."""

    def repository(self, flavour: str | None) -> str:
        """The hub repository of a flavour; KeyError where the family has no such flavour."""
        return self.flavours[flavour or self.default_flavour]


@cache
def cards() -> Mapping[str, FamilyCard]:
    """Every family that has a folder, by name."""
    found: dict[str, FamilyCard] = {}
    for module in pkgutil.iter_modules(families.__path__):
        if module.ispkg:
            card: FamilyCard = importlib.import_module(f"{families.__name__}.{module.name}.card").CARD
            found[card.name] = card
    return MappingProxyType(found)


def find_card(name: str) -> FamilyCard | None:
    """The family called so, by name or alias, in any case; None where there is none."""
    wanted = name.strip().lower()
    for card in cards().values():
        if wanted == card.name or wanted in card.aliases:
            return card
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
"""Every family name that the configuration format knows, with or without a folder here."""


def known_but_missing(name: str) -> bool:
    """Whether the format knows this family and we do not train it yet."""
    return name.strip().lower() in FORMAT_FAMILIES and find_card(name) is None

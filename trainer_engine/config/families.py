"""Finds the model families: one ``FamilySpec`` for each folder of ``trainer_engine/families``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from trainer_engine import families
from trainer_engine.config.adapters.other_names import OriginalNames
from trainer_engine.config.family_parts import OTHER_PREFIXES
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.json_fields import folded

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


def family_folder(name: str) -> Path:
    """The folder that holds a family's spec and what lies beside it."""
    (folder,) = families.__path__
    return Path(folder) / name


@cache
def known_key_prefixes() -> Mapping[str, str]:
    """``FamilySpec.key_prefixes`` of all families with one trained component together, for files of an unknown family."""
    alone = (spec.key_prefixes for spec in specs().values() if len(spec.trained) == 1)
    return MappingProxyType({prefix: "" for prefixes in alone for prefix in prefixes} | dict.fromkeys(OTHER_PREFIXES, ""))


@cache
def known_original_names() -> tuple[OriginalNames, ...]:
    """``original_names`` of the trained components of all families."""
    found = (component.original_names for spec in specs().values() for component in spec.trained.values())
    return tuple(dict.fromkeys(names for names in found if names is not None))


@cache
def trained_folders() -> tuple[str, ...]:
    """Subfolders in which the pipelines of any family keep a trained component."""
    return tuple(dict.fromkeys(component.folder for spec in specs().values() for component in spec.trained.values()))


@cache
def replaced_code() -> frozenset[str]:
    """``PromptSpec.replaced_code`` of all families."""
    return frozenset(code for spec in specs().values() for code in spec.prompts.replaced_code)


def find_spec(name: str) -> FamilySpec | None:
    """Returns the spec of a family by its name or an alias, ignoring case and the kind of dash, or None."""
    wanted = folded(name)
    for spec in specs().values():
        if wanted in map(folded, (spec.name, *spec.aliases)):
            return spec
    return None


FORMAT_FAMILIES = frozenset(
    [
        "ace_step",
        "anima",
        "auraflow",
        "boogu_image",
        "chroma",
        "cosmos",
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
        "kandinsky5_image",
        "kandinsky5_video",
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
    return folded(name) in FORMAT_FAMILIES and find_spec(name) is None

"""The file in a pipeline's folder that names its components, and the code that loads the folder.

It is ``model_index.json``. Of a model that diffusers generates with in blocks it is ``modular_model_index.json``, which also says where
each component is: such an entry may name another repository. The components themselves lie in subfolders of their names in both layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import diffusers

from trainer_engine.config.components import MODULAR_INDEX, PIPELINE_INDEX

Classes = Mapping[str, tuple[str, str]]
"""Subfolder of a component -> the library of its class, and the name of the class."""


def is_modular(pipeline: str) -> bool:
    """Whether diffusers runs the pipeline of this name in blocks."""
    cls = getattr(diffusers, pipeline, None)
    return isinstance(cls, type) and issubclass(cls, diffusers.ModularPipeline)


def pipeline_index(
    pipeline: str,
    present: Classes,
    absent: Classes = MappingProxyType({}),
    settings: Mapping[str, Any] = MappingProxyType({}),
    *,
    home: str | None = None,
    base_model: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Name and content of the file for a pipeline with the components ``present``.

    ``absent`` are components of the pipeline that its folder lacks: a modular one loads them from the repository ``base_model``, others are
    given them. ``home`` is the repository that the folder is published as; loaded as a folder, a modular pipeline takes what is in it.
    """
    head = {"_class_name": pipeline, "_diffusers_version": diffusers.__version__, **settings}
    if not is_modular(pipeline):
        return PIPELINE_INDEX, {**head, **{name: list(found) for name, found in present.items()}, **{name: [None, None] for name in absent}}
    blocks = getattr(diffusers, pipeline).default_blocks_name
    entries = {name: _entry(name, found, home) for name, found in present.items()}
    elsewhere = None if base_model is None or Path(base_model).is_absolute() else base_model
    return MODULAR_INDEX, {
        **head,
        "_blocks_class_name": blocks,
        **entries,
        **{name: _entry(name, found, elsewhere) for name, found in absent.items()},
    }


def _entry(name: str, found: tuple[str, str], repository: str | None) -> list[Any]:
    place = {"pretrained_model_name_or_path": repository, "subfolder": name, "variant": None, "revision": None}
    return [*found, {"type_hint": list(found), **place}]


def names_a_repository(entry: Any) -> bool:
    """Whether an entry of a modular index says that its component lies in a repository of the hub."""
    place = entry[-1] if isinstance(entry, list) and len(entry) == 3 else None
    name = place.get("pretrained_model_name_or_path") if isinstance(place, dict) else None
    return isinstance(name, str) and name.count("/") == 1 and not Path(name).is_absolute()


def loading_code(pipeline: str, source: str, dtype: str, *, method: str = "from_pretrained") -> str:
    """Python that loads a pipeline in a type of torch. ``source`` is an expression, perhaps with further arguments."""
    if is_modular(pipeline):
        return f"pipeline = {pipeline}.{method}({source})\npipeline.load_components(dtype=torch.{dtype})"
    return f"pipeline = {pipeline}.{method}({source}, torch_dtype=torch.{dtype})"

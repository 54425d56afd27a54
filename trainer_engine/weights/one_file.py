"""Loads components whose weights are in one file, with the conversions of diffusers and without the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import safe_open
from torch import Tensor

from trainer_engine.config.components import ComponentSource
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.contents import file_problem, network_problem
from trainer_engine.config.one_file.header import read_header
from trainer_engine.config.one_file.layout import NETWORK_PREFIX, component_prefix, layout_of
from trainer_engine.contract.errors import ModelUnavailable, Problem
from trainer_engine.weights.hub import Part, loading, refuse_gaps

BARE_UNET = "input_blocks.0.0.weight"


def load_model(cls: type[Any], part: Part, dtype: torch.dtype) -> Any:
    """Load a diffusers model; its configuration comes from the part's folder. Raises ModelUnavailable."""
    with loading(part):
        config = cls.load_config(part.folder, local_files_only=True)
        with init_empty_weights():
            names = set(cls.from_config(config).state_dict())
        plain = {key.removeprefix(part.prefix): tensor for key, tensor in component_tensors(part).items()}
        tensors = plain if names <= plain.keys() else _converted(cls, plain, config)
        missing = sorted(names - tensors.keys())
    refuse_gaps(part, missing, [])  # diffusers would leave them without memory
    with loading(part):
        named = {name: tensors[name] for name in names}
        return cls.from_single_file(named, config=str(part.folder), torch_dtype=dtype, local_files_only=True)


def _converted(cls: type[Any], tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors by their names in diffusers. Their keys have no prefix, which not every conversion takes away."""
    if BARE_UNET in tensors:  # diffusers looks for the prefix of a complete checkpoint
        tensors = {f"{NETWORK_PREFIX}{key}": tensor for key, tensor in tensors.items()}
    convert = cast("Any", SINGLE_FILE_LOADABLE_CLASSES)[cls.__name__]["checkpoint_mapping_fn"]
    converted: dict[str, Tensor] = convert(checkpoint=tensors, config=config)
    return converted


def load_clip(cls: type[Any], part: Part, dtype: torch.dtype) -> Any:
    """Load a text encoder of CLIP; its configuration comes from the part's folder. Raises ModelUnavailable."""
    create = cast("Any", single_file_utils).create_diffusers_clip_model_from_ldm
    with loading(part):
        encoder = create(cls, component_tensors(part), config=str(part.folder), torch_dtype=dtype, local_files_only=True)
    refuse_gaps(part, sorted(name for name, tensor in encoder.state_dict().items() if tensor.is_meta), [])
    return encoder


def prefix_in_file(place: ComponentSource, spec: FamilySpec, flavour: str | None) -> str:
    """Prefix of the keys of a component in a source that is one file.

    Raises ModelUnavailable for the file of another model, in the words of the check before a run.
    """
    refuse(file_problem(place.option, Path(place.name), spec, flavour))
    layout = layout_of(spec.file_layouts, flavour or spec.default_flavour)
    return component_prefix(read_header(Path(place.name)).tensors, layout, place.folder)


def refuse_other_network(part: Part, option: str, spec: FamilySpec, flavour: str | None) -> None:
    """Raise ModelUnavailable if a folder holds the network of another model, in the words of the check before a run."""
    if spec.file_layouts:
        with loading(part):
            shapes = {key: tensor.shape for path in part.weights() for key, tensor in read_header(path).tensors.items()}
        refuse(network_problem(option, part.source.name, shapes, spec, flavour))


def refuse(problem: Problem | None) -> None:
    if problem is not None:
        raise ModelUnavailable(problem.message, hint=problem.hint)


def component_tensors(part: Part) -> dict[str, Tensor]:
    """The tensors of one component, by their keys in the file."""
    assert part.file is not None
    with safe_open(part.file, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key.startswith(part.prefix)}  # noqa: SIM118

"""Reads names and shapes of the trained networks from the headers of their weights, without torch and without downloading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.components import component_source, find_component
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.layout import FileLayout, component_prefix, layout_of
from trainer_engine.config.one_file.text_names import transformers_shapes
from trainer_engine.config.one_file.unet_names import diffusers_names
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.published_quantised import QUANT_STATE, SCALE, is_published_quantised
from trainer_engine.contract.files import open_regular, read_small_json
from trainer_engine.contract.safetensors_header import METADATA, read_header

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
MOST_SHARDS = 500
BROKEN_HEADER = (OSError, ValueError, TypeError, LookupError, AttributeError)


def network_tensors(model: ModelOptions, spec: FamilySpec, cache: Path) -> dict[str, Shape] | None:
    """Tensor -> shape of the trained components, by their names in the network of a run. ``cache`` is the hub's cache.

    The first layer is as wide as the run trains it.
    None if the weights are not on this machine, cannot be read, are packed in 4 bits, or are made when the run starts.
    """
    if any(component.is_made for component in spec.trained.values()):
        return None
    found: dict[str, Shape] = {}
    for name, component in spec.trained.items():
        part = find_component(component_source(model, spec, component.folder), cache)
        if part is None:
            return None
        try:
            if part.file is None:
                shapes = _folder_shapes(part.folder)
            elif name in spec.trained_text_encoders:
                layout = layout_of(spec.file_layouts, model.model_flavour or spec.default_flavour)
                shapes = _text_shapes(part.file, part.folder, layout)
            else:
                shapes = _network_shapes(part.file)
        except BROKEN_HEADER:
            return None
        if any(QUANT_STATE in tensor for tensor in shapes):
            return None  # headers of packed weights state no shapes of layers
        shapes = {tensor: shape for tensor, shape in shapes.items() if not tensor.endswith(SCALE)}
        found |= {spec.module_prefix(name) + tensor.removeprefix(component.file_prefix): shape for tensor, shape in shapes.items()}
    return (spec.widened.widened(found) if spec.widened else found) or None


def component_tensors(model: ModelOptions, spec: FamilySpec, folder: str, cache: Path) -> dict[str, Shape] | None:
    """Tensor -> shape of a component in a folder of its own; empty if the base model is on this machine and lacks it.

    None if it is not known: it has to be downloaded, or is in one file with others.
    """
    source = component_source(model, spec, folder)
    part = find_component(source, cache)
    if part is None or part.file is not None:
        return {} if part is None and source.config is None and Path(source.name).is_absolute() else None
    try:
        return _folder_shapes(part.folder)
    except BROKEN_HEADER:
        return None


def _folder_shapes(folder: Path) -> dict[str, Shape]:
    return {name: shape for path in sorted(folder.glob("*.safetensors"))[:MOST_SHARDS] for name, shape in shapes_in(path).items()}


def holds_published_quantised(folder: Path) -> bool:
    """Whether the weights in a folder are quantised. False if they cannot be read."""
    try:
        return is_published_quantised(_folder_shapes(folder))
    except BROKEN_HEADER:
        return False


def _network_shapes(file: Path) -> dict[str, Shape]:
    """The tensors of the network in one file, by their names in diffusers; empty if these are not known."""
    shapes = shapes_in(file)
    return _sorted(diffusers_names(_without_prefix(shapes, component_prefix(shapes, None, ""))))


def _text_shapes(file: Path, folder: Path, layout: FileLayout | None) -> dict[str, Shape]:
    """The tensors of a text encoder in one file, by their names in transformers. ``folder`` holds its configuration."""
    shapes, config = shapes_in(file), read_small_json(folder / "config.json")
    own = _without_prefix(shapes, component_prefix(shapes, layout, folder.name))
    has_projection = any("WithProjection" in name for name in config["architectures"])
    return _sorted(transformers_shapes(own, layers=int(config["num_hidden_layers"]), has_projection=has_projection))


def _without_prefix(shapes: Shapes, prefix: str) -> dict[str, Shape]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _sorted(shapes: Shapes) -> dict[str, Shape]:
    """As a folder of diffusers has them."""
    return dict(sorted(shapes.items()))


def count_parameters(tensors: Shapes) -> int:
    """The number of parameters that a full fine-tune trains."""
    return sum(math.prod(shape) for shape in tensors.values())


def layer_shapes(tensors: Shapes) -> dict[str, Shape]:
    """Module name -> (out, in) of the linear layers."""
    return {name.removesuffix(".weight"): shape for name, shape in tensors.items() if name.endswith(".weight") and len(shape) == 2}


def adaptable_layers(tensors: Shapes) -> dict[str, Shape]:
    """Module name -> (out, in, *kernel) of the linear layers and convolutions."""
    return {name.removesuffix(".weight"): shape for name, shape in tensors.items() if name.endswith(".weight") and len(shape) > 1}


def module_names(tensors: Shapes) -> set[str]:
    """Full names of the modules that hold weights, and of their parents."""
    paths = (name.split(".") for name in tensors)
    return {".".join(path[:depth]) for path in paths for depth in range(len(path))}


def shapes_in(path: Path) -> dict[str, Shape]:
    """Tensor -> shape, from the header of a safetensors file. Raises the exceptions in ``BROKEN_HEADER``."""
    with open_regular(path) as stream:
        header, _ = read_header(stream.read)
    return {name: _sizes(tensor["shape"]) for name, tensor in header.items() if name != METADATA}


def _sizes(shape: Any) -> Shape:
    """A shape of a header. Raises ValueError and TypeError."""
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape holds something else than sizes")
    return tuple(shape)


def text_encoder_bytes(model: ModelOptions, spec: FamilySpec, cache: Path) -> int:
    """Size of the files of the text encoders; those that are not on this machine count nothing."""
    parts = [find_component(component_source(model, spec, name), cache) for name in spec.prompts.text_encoder_folders]
    return sum(_folder_bytes(part.folder) for part in parts if part is not None)


def _folder_bytes(folder: Path) -> int:
    """Size of the files in a folder, links followed."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0

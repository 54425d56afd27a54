"""Checks of validation adapters and of the assistant adapter from the headers of their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from trainer_engine.config.adapters.assistant import assistant_of
from trainer_engine.config.adapters.file_header import UnusableAdapter, open_adapter
from trainer_engine.config.adapters.joint_layers import taken_apart
from trainer_engine.config.adapters.keys import keys_by_module, split_key
from trainer_engine.config.adapters.validation_adapter import USUAL_FILE, ValidationAdapterSource, hub_file, validation_adapter_runs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_file, is_folder
from training.preflight import base_model

Shapes = Mapping[str, tuple[int, ...]]
IN_EVERY_TRANSFORMER = ("attn", "ff")
"""Parts of the names of layers that adapters of every family change."""
SIDES = {"lora_A.weight": 1, "lora_down.weight": 1, "lora_B.weight": 0, "lora_up.weight": 0}
"""Matrix of a LoRA -> which of its sizes equals the layer's (out, in): 1 for the input, 0 for the output."""


def validation_adapter_problems(
    options: TrainingOptions, spec: FamilySpec, layers: Shapes | None, hub: base_model.HubSettings
) -> Iterator[Problem]:
    """``layers`` are the linear layers of the base model's network; None skips the checks that need them."""
    values = options.as_values()
    runs = [] if options.validation.validation_disable else validation_adapter_runs(values)
    assistant = assistant_of(values)
    for source in (*(source for run in runs for source in run.sources), *([assistant] if assistant else [])):
        yield from _source_problems(source, spec, layers, hub)


def _source_problems(
    source: ValidationAdapterSource, spec: FamilySpec, layers: Shapes | None, hub: base_model.HubSettings
) -> Iterator[Problem]:
    path, place = source.path, source.place
    file, there = _local_file(Path(path)), hub_file(path)
    if not Path(path).is_absolute() and there is not None:
        snapshot = base_model.cached_snapshot(hub, there.repository, None)
        if snapshot is None or not is_file(snapshot / there.file):
            problem = base_model.check_file(place, there.repository, there.file, hub)
            yield from [problem] if problem else []
            return
        file = snapshot / there.file
    if not is_file(file):
        message = f"The folder {path} holds no {USUAL_FILE}." if is_folder(Path(path)) else f"There is no file {file}."
        yield Problem.error(place, "not_found", message, got=path, expected="an adapter file")
        return
    yield from _header_problems(file, source, spec, layers)


def adapter_file(source: ValidationAdapterSource, hub: base_model.HubSettings) -> Path | None:
    """The file of an adapter, or None if it is not on this machine."""
    file, there = _local_file(Path(source.path)), hub_file(source.path)
    if not Path(source.path).is_absolute() and there is not None:
        snapshot = base_model.cached_snapshot(hub, there.repository, None)
        return snapshot / there.file if snapshot and is_file(snapshot / there.file) else None
    return file if is_file(file) else None


def _local_file(path: Path) -> Path:
    return path / USUAL_FILE if is_folder(path) else path


def _header_problems(file: Path, source: ValidationAdapterSource, spec: FamilySpec, layers: Shapes | None) -> Iterator[Problem]:
    try:
        header = taken_apart(open_adapter(file), layers or (), spec.key_prefixes)
        tensors = {name: tensor.shape for name, tensor in header.tensors.items()}
    except UnusableAdapter as error:
        yield Problem.error(source.place, error.code, error.message, got=source.path, expected="a .safetensors file", hint=error.hint)
        return
    if layers:
        yield from _fit_problems(file, source, tensors, layers, spec)
    elif not any(mark in split_key(key)[0] for key in tensors for mark in _marks(spec)):
        message = f"No layer in {file.name} has a name of {spec.title}'s layers."
        yield Problem.error(source.place, "does_not_fit", message, got=source.path, expected=f"an adapter of {spec.title}")


def _marks(spec: FamilySpec) -> set[str]:
    return {*IN_EVERY_TRANSFORMER, *(ending for endings in spec.adapters.lora_targets.values() for ending in endings)}


def _fit_problems(file: Path, source: ValidationAdapterSource, tensors: Shapes, layers: Shapes, spec: FamilySpec) -> Iterator[Problem]:
    modules, strangers = keys_by_module(sorted(tensors), layers, spec.key_prefixes)
    expected = "an adapter of this base model, on its linear layers"
    if strangers or not modules:
        message = (
            f"{len(strangers)} keys of {file.name} belong to no linear layer of the base model: {', '.join(strangers[:3]) or 'no key'}."
        )
        yield Problem.error(source.place, "does_not_fit", message, got=source.path, expected=expected)
        return
    for name, parts in modules.items():
        for part, side in SIDES.items():
            shape = tensors[parts[part]] if part in parts else ()
            if shape and shape[side] != layers[name][side]:
                message = f"{parts[part]} in {file.name} is {'x'.join(map(str, shape))}, and the layer {'x'.join(map(str, layers[name]))}."
                yield Problem.error(source.place, "does_not_fit", message, got=source.path, expected=expected)
                return

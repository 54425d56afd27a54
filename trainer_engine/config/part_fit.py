"""Whether the parts of a base model are those of its family and fit one another, by their configurations. Standard library only.

``validate`` and the engine use the same functions. What is not on this machine, or not stated, is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer_engine.config.components import (
    BASE,
    PIPELINE_INDEX,
    ComponentSource,
    component_config,
    component_source,
    find_component,
    pipeline_settings,
)
from trainer_engine.config.controlnet import FOLDER
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.stages import OtherStage
from trainer_engine.config.text_states import TextStates, stated_layers, stated_number, stated_width
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_folder

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")
"""What a tokenizer reads its tokens from: one of these at least."""


def missing_parts(model: ModelOptions, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Yields an error for each local folder that lacks parts which a run takes from it."""
    flavour, prompts = model.model_flavour or spec.default_flavour, spec.prompts
    may_lack = {FOLDER, *prompts.optional_folders, *prompts.flavour_optional_folders.get(flavour, ()), *spec.seeing_folders(flavour)}
    lacking: dict[tuple[str, str], list[str]] = {}
    for folder in spec.base_folders:
        source = component_source(model, spec, folder)
        place = source.config or source
        is_here = Path(place.name).is_absolute() and is_folder(Path(place.name))
        if is_here and folder not in may_lack and find_component(place, cache) is None:
            lacking.setdefault((place.option, place.name), []).append(place.folder)
    for (option, name), folders in lacking.items():
        message = f"{name} has no folder {' and no '.join(folders)}."
        hint = f"the folder of a {spec.title} pipeline in the diffusers layout is needed"
        yield Problem.error(option, "component_missing", message, got=name, expected=f"a folder with {' and '.join(folders)}", hint=hint)


def missing_vocabularies(model: ModelOptions, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Yields an error for each tokenizer in a local folder that has no tokens. The libraries fail with errors that name no file."""
    for folder in spec.prompts.tokenizer_folders:
        source = component_source(model, spec, folder)
        place = source.config or source
        found = find_component(place, cache) if Path(place.name).is_absolute() else None
        if found is None or any(any(found.folder.glob(pattern)) for pattern in VOCABULARIES):
            continue
        message = f"{found.folder} holds no vocabulary of a tokenizer."
        expected = f"one of {', '.join(VOCABULARIES)}"
        hint = f"copy it from {spec.repository(model.model_flavour)}"
        yield Problem.error(place.option, "no_vocabulary", message, got=place.name, expected=expected, hint=hint)


def foreign_network(model: ModelOptions, spec: FamilySpec, cache: Path) -> Problem | None:
    """Why the network is that of another family, by the class or the entries of its ``config.json``; None if it is not."""
    source = component_source(model, spec, spec.components[spec.network].folder)
    config = component_config(model, spec, spec.components[spec.network].folder, cache)
    kind, place = config.get("_class_name"), source.config or source
    for title, entries in spec.foreign_networks.items():
        if all(config.get(key) == value for key, value in entries.items()):
            found = ", ".join(f"{key}={value}" for key, value in entries.items())
            message = f"{place.name} holds the network of {title}, whose configuration has {found}; {spec.title} has other inputs."
            hint = f"take one such as {spec.repository(model.model_flavour)}"
            return Problem.error(place.option, "other_model", message, got=place.name, expected=f"a network of {spec.title}", hint=hint)
    if not spec.network_classes or not isinstance(kind, str) or kind in spec.network_classes:
        return _other_flavour(model, spec, config, place)
    others = [other.name for other in specs().values() if kind in other.network_classes]
    message = f"{place.name} holds a {kind[:100]}, which is not the network of {spec.title}."
    expected = f"a {' or a '.join(spec.network_classes)}"
    hint = f"set model_family={' or '.join(others)}, or use a model of {spec.title}" if others else f"use a model of {spec.title}"
    return Problem.error(place.option, "other_model", message, got=place.name, expected=expected, hint=hint)


def _other_flavour(model: ModelOptions, spec: FamilySpec, config: Mapping[str, Any], place: ComponentSource) -> Problem | None:
    """Why the network is that of a flavour with other inputs; None if it is not. What it does not state is not judged."""
    flavour = model.model_flavour or spec.default_flavour
    wanted = spec.flavour_networks.get(flavour, {})
    other = {key: config[key] for key, value in wanted.items() if key in config and config[key] != value}
    if not other:
        return None
    found = ", ".join(f"{key}={value}" for key, value in other.items())
    fitting = [name for name, entries in spec.flavour_networks.items() if all(config.get(key) == value for key, value in entries.items())]
    message = f"{place.name} holds a network of {spec.title} with {found}; {flavour} has other inputs."
    hint = f"set model_flavour={' or '.join(fitting)}" if fitting else f"use a model such as {spec.repository(flavour)}"
    expected = f"a network with {', '.join(f'{key}={wanted[key]}' for key in other)}"
    return Problem.error(place.option, "other_flavour", message, got=place.name, expected=expected, hint=hint)


def unfit_encoders(model: ModelOptions, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Yields an error for each way in which the states of the text encoders are not those that the network reads."""
    for states in spec.prompts.states:
        encoders = [_Read.of(model, spec, folder, cache) for folder in states.folders]
        reader = _Read.of(model, spec, states.reader or spec.components[spec.network].folder, cache)
        settings = pipeline_settings(model, spec, cache)
        flavour = model.model_flavour or spec.default_flavour
        layers, kind = states.layers_of(flavour, settings), states.flavour_kinds.get(flavour, states.kind)
        listed = stated_layers(reader.config, states.layers_key)
        hint = f"take both from one repository, such as {spec.repository(model.model_flavour)}"
        strange = [found for encoder in encoders if (found := _kind_problem(encoder, kind, spec, flavour))]
        if strange:
            yield from strange
        elif layers is None:
            key = states.layers_setting
            message = f"{PIPELINE_INDEX} of {reader.source.name} states {key}={str(settings[key])[:100]}, which are no numbers of layers."
            yield Problem.error(BASE, "bad_layers", message, got=str(settings[key])[:100], expected="a list of numbers from 0", hint=hint)
        elif states.layers_key and not listed and reader.config.get("_class_name") in [*spec.network_classes]:
            message = f"The configuration of {reader.source.name} lists no {states.layers_key}, which say what it reads of a text encoder."
            expected = f"{states.layers_key}: a list of numbers from 0"
            yield Problem.error(reader.source.option, "bad_layers", message, got="none", expected=expected, hint=hint)
        else:
            yield from _depth_problems(states, listed or layers, encoders, reader, hint)
            yield from _width_problems(states, listed or layers, encoders, reader, hint)


def unfit_stage(stage: OtherStage, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Yields why the network of the other stage of validation images, or a text encoder beside it, is not the family's.

    ``stage.option`` names the weights, whatever part of them it is.
    """
    foreign = foreign_network(stage.model, spec, cache)
    for problem in [foreign] if foreign else unfit_encoders(stage.model, spec, cache):
        yield replace(problem, option=stage.option)


@dataclass(frozen=True)
class _Read:
    """One part of a base model as far as its configuration is known."""

    source: ComponentSource
    config: Mapping[str, Any]

    @classmethod
    def of(cls, model: ModelOptions, spec: FamilySpec, folder: str, cache: Path) -> _Read:
        return cls(component_source(model, spec, folder), component_config(model, spec, folder, cache))


def _kind_problem(encoder: _Read, kind: str, spec: FamilySpec, flavour: str) -> Problem | None:
    """The problem of a text encoder of another kind than that of the flavour."""
    found = encoder.config.get("model_type")
    if not kind or not isinstance(found, str) or found == kind:
        return None
    message = f"{_named(encoder)} is a {found[:100]}; the text encoder of {spec.title} {flavour} is a {kind}."
    return Problem.error(
        encoder.source.option, "other_encoder", message, got=found[:100], expected=kind, hint=f"use that of {spec.repository(flavour)}"
    )


def _depth_problems(states: TextStates, layers: tuple[int, ...], encoders: list[_Read], reader: _Read, hint: str) -> Iterator[Problem]:
    """Whether the text encoders have the layers that are read, and whether they are as many as the reader takes."""
    for encoder in encoders:
        depth = stated_number(encoder.config, states.depth)
        if layers and depth is not None and depth < max(layers):
            message = f"State {max(layers)} of {_named(encoder)} is read, which has {depth} layers."
            expected = f"{states.depth} of {max(layers)} or more"
            yield Problem.error(encoder.source.option, "too_few_layers", message, got=depth, expected=expected, hint=hint)
    count = reader.config.get(states.count) if states.count else None
    if type(count) is int and count != len(layers):
        message = f"{_named(reader)} takes {count} states of the text encoder for each token, and the pipeline reads {len(layers)}."
        yield Problem.error(reader.source.option, "other_layers", message, got=len(layers), expected=f"{count} states", hint=hint)


def _width_problems(states: TextStates, layers: tuple[int, ...], encoders: list[_Read], reader: _Read, hint: str) -> Iterator[Problem]:
    """Whether the states are as wide as the reader takes them."""
    sizes = [size for encoder in encoders if (size := stated_number(encoder.config, states.size)) is not None]
    wanted = stated_width(reader.config, states.width)
    if wanted is None or len(sizes) < len(encoders):
        return
    width = sum(sizes) * (len(layers) if states.side_by_side else 1)
    if width != wanted:
        named = " and ".join(map(_named, encoders))
        message = f"{_named(reader)} takes {wanted} numbers of the text encoder ({states.width}), and {named} {_makes(encoders)} {width}."
        replaced = next((part.source.option for part in (*encoders, reader) if part.source.option != BASE), BASE)
        yield Problem.error(replaced, "other_width", message, got=width, expected=f"{wanted} numbers", hint=hint)


def _named(part: _Read) -> str:
    return f"{part.source.folder} of {part.source.name}"


def _makes(encoders: list[_Read]) -> str:
    return "make" if len(encoders) > 1 else "makes"

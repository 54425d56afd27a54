"""Checks of the base model on this machine, with the code that the engine uses: unsafe files, noise schedule, distilled weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer_engine.config.components import (
    component_source,
    find_component,
    model_sources,
    network_config,
    noise_schedule,
    pipeline_settings,
    prediction_type,
)
from trainer_engine.config.control import width_problem
from trainer_engine.config.controlnet import FOLDER, NAME, WEIGHTS, weights_problem
from trainer_engine.config.encoder_fit import foreign_autoencoder, missing_clip_layers
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.model_files import unsafe_files
from trainer_engine.config.one_file.contents import file_problem, network_problem
from trainer_engine.config.one_file.layout import is_one_file
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.part_fit import foreign_network, missing_parts, missing_vocabularies, unfit_encoders, unfit_stage
from trainer_engine.config.rules.noise_schedule import distillation_problems, schedule_problems
from trainer_engine.config.rules.routing import network_route_problems
from trainer_engine.config.rules.skipped_layers import network_skip_problems
from trainer_engine.config.stages import NetworkFacts, mismatch, other_stage
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import is_folder
from training.preflight import base_model
from training.preflight.network import Shapes, holds_published_quantised


def model_problems(options: TrainingOptions, spec: FamilySpec, hub: base_model.HubSettings) -> Iterator[Problem]:
    """Check local models. The engine checks the others after the download."""
    seen: set[Path] = set()
    for name in spec.base_folders:
        source = component_source(options.model, spec, name)
        found = find_component(source, hub.cache)
        if found is not None and found.folder not in seen:
            seen.add(found.folder)
            named = source.config or source
            dequantises = bool(spec.published_precisions) and holds_published_quantised(found.folder)
            yield from folder_problems(named.option, named.name, found.folder, reads_quantised=dequantises)
    yield from _part_problems(options, spec, hub)
    yield from _controlnet_problems(options, spec, hub)
    yield from _other_stage_problems(options, spec, hub)
    yield from _seeing_problems(options, spec, hub)
    for option, name in model_sources(options.model, spec).items():
        if is_one_file(name):
            problem = file_problem(option, Path(name), spec, options.model.model_flavour)
            yield from [problem] if problem else []


def _part_problems(options: TrainingOptions, spec: FamilySpec, hub: base_model.HubSettings) -> Iterator[Problem]:
    """Whether local models have every part, the network is the family's, and text encoders and control images fit it."""
    for found in missing_parts(options.model, spec, hub.cache):
        if base_model.check_access(found.option, str(found.got), None, hub) is None:  # otherwise it is no model at all
            yield found
    yield from missing_vocabularies(options.model, spec, hub.cache)
    strange = foreign_autoencoder(options.model, spec, hub.cache)
    yield from [strange] if strange else []
    foreign = foreign_network(options.model, spec, hub.cache)
    if foreign:
        yield foreign
        return
    yield from unfit_encoders(options.model, spec, hub.cache)
    yield from missing_clip_layers(options.model, spec, hub.cache)
    yield from _width_problems(options, spec, hub.cache)


def _controlnet_problems(options: TrainingOptions, spec: FamilySpec, hub: base_model.HubSettings) -> Iterator[Problem]:
    """Whether the weights that a ControlNet begins with are those of another class."""
    if spec.steers is None or spec.components[NAME].is_made:
        return
    source = component_source(options.model, spec, FOLDER)
    found = find_component(source, hub.cache)
    if found is None:
        if Path(source.name).is_absolute() and base_model.check_access(WEIGHTS, source.name, None, hub) is None:
            message = f"{source.name} holds no ControlNet: it has neither config.json nor a folder {FOLDER}."
            yield Problem.error(WEIGHTS, "not_a_model", message, got=source.name, expected=f"a folder with a {spec.steers.class_name}")
        return
    network = find_component(component_source(options.model, spec, spec.components[spec.network].folder), hub.cache)
    problem = weights_problem(source.name, found.folder, network.folder if network else None, spec.steers)
    yield from [problem] if problem else []


def _other_stage_problems(options: TrainingOptions, spec: FamilySpec, hub: base_model.HubSettings) -> Iterator[Problem]:
    """Whether the network that makes validation images beside the trained one can be loaded, and fits it."""
    stage, stages = other_stage(options, spec), spec.stages
    if stage is None or stages is None:
        return
    for component in spec.trained.values():
        found = find_component(component_source(stage.model, spec, component.folder), hub.cache)
        if found is not None:
            yield from folder_problems(stage.option, stage.name, found.folder)
        elif Path(stage.name).is_absolute() and base_model.check_access(stage.option, stage.name, None, hub) is None:
            message = f"{stage.name} has no folder {component.folder}."
            hint = f"the folder of a {spec.title} pipeline in the diffusers layout is needed"
            yield Problem.error(stage.option, "not_a_model", message, got=stage.name, hint=hint)
    strange = list(unfit_stage(stage, spec, hub.cache))
    yield from strange
    if strange:
        return
    own, other = _facts(options.model, spec, hub.cache), _facts(stage.model, spec, hub.cache)
    problem = mismatch(stage, stages, own, other) if own and other else None
    yield from [problem] if problem else []


def _facts(model: ModelOptions, spec: FamilySpec, cache: Path) -> NetworkFacts | None:
    """What the files of a base model say about its network; None if they are not on this machine."""
    learned = prediction_type(model, spec, cache)
    return NetworkFacts(noise_schedule(model, spec, cache), network_config(model, spec, cache), learned) if learned else None


def _seeing_problems(options: TrainingOptions, spec: FamilySpec, hub: base_model.HubSettings) -> Iterator[Problem]:
    """Whether a local model lacks what looks at first frames or references: it is then another model."""
    sources = [component_source(options.model, spec, folder) for folder in spec.seeing_folders(options.model.model_flavour)]
    lacking = [one for one in sources if is_folder(Path(one.name)) and find_component(one, hub.cache) is None]
    if lacking:
        flavour, first, named = options.model.model_flavour, lacking[0], " and no ".join(one.folder for one in lacking)
        message = f"{first.name} has no folder {named}, with which {spec.title} {flavour} sees images."
        expected = f"a folder with {' and '.join(one.folder for one in lacking)}"
        hint = f"use {spec.repository(flavour)}, or weights that were trained from it"
        yield Problem.error(first.option, "component_missing", message, got=first.name, expected=expected, hint=hint)


def _width_problems(options: TrainingOptions, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Whether the network looks at more or fewer images than the run shows it."""
    channels = network_config(options.model, spec.beside or spec, cache).get("in_channels")
    if spec.control is None or type(channels) is not int:
        return
    source = component_source(options.model, spec, spec.components[spec.network].folder)
    problem = width_problem(source.option, source.name, channels, spec.control, with_control=spec.widened is not None)
    yield from [problem] if problem else []


def network_problems(options: TrainingOptions, spec: FamilySpec, tensors: Shapes | None, cache: Path) -> Iterator[Problem]:
    """Whether the network is that of another model, or lacks blocks that options name.

    ``tensors``: its tensors -> shapes, or None if they are not known. ``cache`` is the hub's cache.
    """
    source = component_source(options.model, spec, next(iter(spec.trained.values())).folder)  # of a ControlNet, its own
    if foreign_network(options.model, spec, cache):
        return  # the check of the model says so
    if tensors and source.config is None:
        problem = network_problem(source.option, source.name, tensors, spec, options.model.model_flavour)
        yield from [problem] if problem else _block_problems(options, spec, tensors)
    elif tensors:
        yield from _block_problems(options, spec, tensors)


def _block_problems(options: TrainingOptions, spec: FamilySpec, tensors: Shapes) -> Iterator[Problem]:
    """Whether the network has the blocks that options name."""
    yield from network_route_problems(options, spec, tensors)
    yield from network_skip_problems(options, spec, tensors)


def weights_problems(options: TrainingOptions, spec: FamilySpec, cache: Path) -> Iterator[Problem]:
    """Whether the objective fits what the weights were trained for. ``cache`` is the hub's cache."""
    scheduler = noise_schedule(options.model, spec, cache)
    yield from schedule_problems(options, spec, scheduler)
    network, pipeline = (read(options.model, spec, cache) for read in (network_config, pipeline_settings))
    yield from distillation_problems(options, spec, scheduler=scheduler, network=network, pipeline=pipeline)


def folder_problems(option: str, source: str, folder: Path, *, reads_quantised: bool = False) -> Iterator[Problem]:
    """At most one problem per folder: the first one, with which the engine would stop. ``reads_quantised``: as for ``unsafe_files``."""
    found = next(unsafe_files(folder, reads_quantised=reads_quantised), None)
    if found is not None:
        message = f"The part {folder.name} of {source} is not loaded: {found}."
        yield Problem.error(option, "unsafe_model", message, got=source, expected="weights in safetensors", hint=found.hint)

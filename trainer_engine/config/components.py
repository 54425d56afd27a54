"""Finds where each component of a base model comes from. The engine and the preflight use it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.config.controlnet import FOLDER, WEIGHTS
from trainer_engine.config.family_parts import tokenizer_of
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.one_file.header import schedule_stated_by
from trainer_engine.config.one_file.layout import is_one_file
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.files import is_file, is_folder, read_small_json, read_small_text

BASE = "pretrained_model_name_or_path"
CONFIG = "pretrained_config_name_or_path"
VAE = "pretrained_vae_model_name_or_path"
T5 = "pretrained_t5_model_name_or_path"
PIPELINE_INDEX, MODULAR_INDEX = "model_index.json", "modular_model_index.json"
"""The file of a base model that names its components; the second is that of a pipeline that diffusers runs in blocks."""
NETWORKS: Mapping[str, tuple[str, str]] = {
    "unet": ("pretrained_unet_model_name_or_path", "pretrained_unet_subfolder"),
    "transformer": ("pretrained_transformer_model_name_or_path", "pretrained_transformer_subfolder"),
}
"""Folder of a network -> (option with another source of it, option with its subfolder there)."""


@dataclass(frozen=True, kw_only=True)
class ComponentSource:
    """Where one component of a base model comes from."""

    option: str
    """The option that names the source."""
    name: str
    """A repository, or the absolute path of a folder or of one file."""
    folder: str
    """Subfolder of the component in it."""
    revision: str | None = None
    variant: str | None = None
    is_bare: bool = False
    """Whether the source may also consist of this component alone, without a subfolder."""
    companion: str = ""
    """Repository that has the component if the source, a repository, lacks it."""
    config: ComponentSource | None = None
    """Where the configuration of a component comes from whose weights are in one file; None for one in a folder."""

    def __str__(self) -> str:
        return self.name + (f" at {self.revision}" if self.revision else "") + (f" ({self.variant})" if self.variant else "")


def spec_of_run(model: ModelOptions, spec: FamilySpec) -> FamilySpec:
    """The facts of a run with these options."""
    return spec.of_flavour(model.model_flavour).for_run(
        train_text_encoder=model.train_text_encoder,
        controlnet=model.controlnet,
        has_weights=bool(model.controlnet_model_name_or_path),
        control=model.control,
    )


def component_source(model: ModelOptions, spec: FamilySpec, folder: str) -> ComponentSource:
    """The source of the component in a subfolder of a pipeline: the base model, or what an option sets instead."""
    if folder == FOLDER:
        return ComponentSource(option=WEIGHTS, name=str(model.controlnet_model_name_or_path), folder=folder, is_bare=True)
    is_network = folder in {component.folder for component in spec.components.values()}
    option, subfolder = NETWORKS.get(folder, ("", ""))
    if is_network and option and (network := getattr(model, option)):
        if is_one_file(network):
            return ComponentSource(option=option, name=network, folder=folder, config=_base(model, spec, folder))
        return ComponentSource(option=option, name=network, folder=getattr(model, subfolder), is_bare=True)
    if folder == "vae" and (vae := model.pretrained_vae_model_name_or_path):
        config = _base(model, spec, folder) if is_one_file(vae) else None
        return ComponentSource(option=VAE, name=vae, folder=folder, is_bare=config is None, config=config)
    t5 = spec.prompts.t5_folder
    plain = {t5: "text_encoder", tokenizer_of(t5): "tokenizer"} if t5 else {}
    if folder in plain and model.pretrained_t5_model_name_or_path:
        return ComponentSource(option=T5, name=model.pretrained_t5_model_name_or_path, folder=plain[folder])
    base = model.pretrained_model_name_or_path
    if is_network and is_one_file(base):
        return ComponentSource(option=BASE, name=str(base), folder=folder, config=_base(model, spec, folder))
    return _base(model, spec, folder)


def _base(model: ModelOptions, spec: FamilySpec, folder: str) -> ComponentSource:
    """A component of the base model, or of the pipeline that completes a base model in one file."""
    base, is_trained = model.pretrained_model_name_or_path, folder in {component.folder for component in spec.trained.values()}
    is_file = is_one_file(base)
    named = model.pretrained_config_name_or_path if is_file else base
    return ComponentSource(
        option=CONFIG if is_file else BASE,
        name=named or spec.repository(model.model_flavour),
        folder=folder,
        revision=model.revision,
        variant=None if is_file else model.variant,
        companion="" if is_trained or folder in NETWORKS else spec.companion,
    )


def model_sources(model: ModelOptions, spec: FamilySpec) -> dict[str, str]:
    """Option -> the repository, folder or file that a run takes weights from, without options that have no effect."""
    used = [component_source(model, spec, folder) for folder in spec.base_folders]
    used += [source.config for source in used if source.config is not None]
    base = model.pretrained_model_name_or_path or spec.repository(model.model_flavour)
    return {BASE: base, **{source.option: source.name for source in used if source.option != BASE}}


def cached_snapshot(cache: Path, repository: str, revision: str | None) -> Path | None:
    """The folder of a repository in a Hugging Face cache, or None if it is not cached."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    wanted = revision or "main"
    if wanted.startswith("/") or ".." in wanted:  # git has no such names, and the file system would follow them
        return None
    try:
        commit = read_small_text(folder / "refs" / wanted).strip()
    except OSError:
        commit = wanted
    snapshot = folder / "snapshots" / commit
    return snapshot if is_folder(snapshot) else None


def local_folder(cache: Path, source: str, revision: str | None) -> Path | None:
    """The folder of a model given as an absolute path or a repository id, or None if it is not on this machine."""
    return Path(source) if Path(source).is_absolute() else cached_snapshot(cache, source, revision)


@dataclass(frozen=True)
class LocalComponent:
    """One component of a base model on this machine."""

    folder: Path
    """Holds its configuration, and its weights if ``file`` is None."""
    file: Path | None = None
    """The file in which its weights are, perhaps with those of other components."""


def find_component(source: ComponentSource, cache: Path) -> LocalComponent | None:
    """A component, or None if it is not on this machine. ``cache`` is the folder of the Hugging Face cache."""
    if source.config is not None:
        config, file = find_component(source.config, cache), Path(source.name)
        return LocalComponent(config.folder, file) if config and is_file(file) else None
    root = local_folder(cache, source.name, source.revision)
    if root is None:
        return None
    if is_folder(root / source.folder):
        return LocalComponent(root / source.folder)
    if source.is_bare and is_file(root / "config.json"):
        return LocalComponent(root)
    if not source.companion or Path(source.name).is_absolute():
        return None
    beside = local_folder(cache, source.companion, None)
    return LocalComponent(beside / source.folder) if beside is not None and is_folder(beside / source.folder) else None


def noise_schedule(model: ModelOptions, spec: FamilySpec, cache: Path) -> Mapping[str, Any]:
    """The noise schedule of the base model, with what a checkpoint in one file states of it.

    Empty if it is not on this machine or cannot be read, which the engine reports.
    """
    if spec.schedule:
        return {**spec.schedule, **stated_by_network(model, spec)}
    found = find_component(component_source(model, spec, "scheduler"), cache)
    try:
        config = read_small_json(found.folder / "scheduler_config.json") if found else None
    except OSError:
        config = None
    return {**(config if isinstance(config, dict) else {}), **stated_by_network(model, spec)}


def network_config(model: ModelOptions, spec: FamilySpec, cache: Path) -> Mapping[str, Any]:
    """The ``config.json`` of the first trained component. Empty if it is not on this machine or cannot be read."""
    return component_config(model, spec, next(iter(spec.trained.values())).folder, cache)


def component_config(model: ModelOptions, spec: FamilySpec, folder: str, cache: Path) -> Mapping[str, Any]:
    """The ``config.json`` of the component in a subfolder. Empty if it is not on this machine or cannot be read."""
    found = find_component(component_source(model, spec, folder), cache)
    try:
        config = read_small_json(found.folder / "config.json") if found else None
    except OSError:
        config = None
    return config if isinstance(config, dict) else {}


def pipeline_settings(model: ModelOptions, spec: FamilySpec, cache: Path) -> Mapping[str, Any]:
    """``model_index.json`` of the base model, which holds the arguments of its pipeline that are no components.

    Empty if it is not on this machine or cannot be read.
    """
    source = component_source(model, spec, "scheduler")
    root = local_folder(cache, source.name, source.revision)
    try:
        settings = read_small_json(root / PIPELINE_INDEX) if root else None
    except OSError:
        settings = None
    return settings if isinstance(settings, dict) else {}


def stated_by_network(model: ModelOptions, spec: FamilySpec) -> dict[str, Any]:
    """What the file of the network states of its noise schedule, in the keys of ``scheduler_config.json``; empty for one in a folder."""
    source = component_source(model, spec, spec.components[spec.network].folder)
    return schedule_stated_by(source.name)


def prediction_type(model: ModelOptions, spec: FamilySpec, cache: Path) -> str | None:
    """What the network learns: the option, else what its weights were trained for, or None if they are not on this machine."""
    if spec.objective == "flow_matching":
        return spec.objective
    if model.prediction_type:
        return model.prediction_type
    schedule = noise_schedule(model, spec, cache)
    return str(schedule.get("prediction_type", spec.objective)) if schedule else None

"""Finds where each component of a base model comes from. The engine and the preflight use it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.config.families import FamilySpec, tokenizer_of
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.files import is_file, is_folder, read_small_json, read_small_text

BASE = "pretrained_model_name_or_path"
VAE = "pretrained_vae_model_name_or_path"
T5 = "pretrained_t5_model_name_or_path"
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
    """A repository, or the absolute path of a folder."""
    folder: str
    """Subfolder of the component in it."""
    revision: str | None = None
    variant: str | None = None
    is_bare: bool = False
    """Whether the source may also consist of this component alone, without a subfolder."""
    companion: str = ""
    """Repository that has the component if the source, a repository, lacks it."""

    def __str__(self) -> str:
        return self.name + (f" at {self.revision}" if self.revision else "") + (f" ({self.variant})" if self.variant else "")


def component_source(model: ModelOptions, spec: FamilySpec, folder: str) -> ComponentSource:
    """The source of the component in a subfolder of a pipeline: the base model, or what an option sets instead."""
    is_trained = folder in {component.folder for component in spec.trained.values()}
    if is_trained and folder in NETWORKS:
        option, subfolder = NETWORKS[folder]
        if source := getattr(model, option):
            return ComponentSource(option=option, name=source, folder=getattr(model, subfolder), is_bare=True)
    if folder == "vae" and model.pretrained_vae_model_name_or_path:
        return ComponentSource(option=VAE, name=model.pretrained_vae_model_name_or_path, folder=folder, is_bare=True)
    t5 = spec.prompts.t5_folder
    plain = {t5: "text_encoder", tokenizer_of(t5): "tokenizer"} if t5 else {}
    if folder in plain and model.pretrained_t5_model_name_or_path:
        return ComponentSource(option=T5, name=model.pretrained_t5_model_name_or_path, folder=plain[folder])
    return ComponentSource(
        option=BASE,
        name=model.pretrained_model_name_or_path or spec.repository(model.model_flavour),
        folder=folder,
        revision=model.revision,
        variant=model.variant,
        companion="" if is_trained else spec.companion,
    )


def model_sources(model: ModelOptions, spec: FamilySpec) -> dict[str, str]:
    """Option -> the repository, folder or file that a run takes weights from, without options that have no effect."""
    used = (component_source(model, spec, folder) for folder in spec.base_folders)
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


def find_component(source: ComponentSource, cache: Path) -> Path | None:
    """The folder of a component, or None if it is not on this machine. ``cache`` is the folder of the Hugging Face cache."""
    root = local_folder(cache, source.name, source.revision)
    if root is None:
        return None
    if is_folder(root / source.folder):
        return root / source.folder
    if source.is_bare and is_file(root / "config.json"):
        return root
    if not source.companion or Path(source.name).is_absolute():
        return None
    beside = local_folder(cache, source.companion, None)
    return beside / source.folder if beside is not None and is_folder(beside / source.folder) else None


def noise_schedule(model: ModelOptions, spec: FamilySpec, cache: Path) -> Mapping[str, Any]:
    """The noise schedule of the base model; empty if it is not on this machine or cannot be read, which the engine reports."""
    folder = find_component(component_source(model, spec, "scheduler"), cache)
    try:
        config = read_small_json(folder / "scheduler_config.json") if folder else None
    except OSError:
        return {}
    return config if isinstance(config, dict) else {}


def prediction_type(model: ModelOptions, spec: FamilySpec, cache: Path) -> str | None:
    """What the network learns: the option, else what its weights were trained for, or None if they are not on this machine."""
    if spec.objective == "flow_matching":
        return spec.objective
    if model.prediction_type:
        return model.prediction_type
    schedule = noise_schedule(model, spec, cache)
    return str(schedule.get("prediction_type", spec.objective)) if schedule else None

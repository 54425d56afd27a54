"""Which base weights a run stands on: part of every checkpoint, compared before a run goes on from one. Standard library only.

A component is known by its content, so that a model which was moved or downloaded again is the same one. Where a component is not on
this machine yet, the repository, revision and variant that would be asked for stand for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.config.families import FamilySpec, tokenizer_of
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.resuming.weight_digests import weight_digest
from trainer_engine.contract.files import is_folder
from trainer_engine.contract.json_reading import read_document
from trainer_engine.contract.small_files import LARGEST_LIST_BYTES, read_small, read_small_json, read_small_text

SHARD = re.compile(r"-\d+-of-\d+")
VOCABULARY = ("*.json", "*.model", "*.txt")
NOT_CONTENT = ("transformers_version", "torch_dtype", "dtype")
"""Keys of configuration files that say who wrote the file; those that begin with an underscore do too."""
DIGITS = 32


@dataclass(frozen=True)
class BasePart:
    """One part of a base model: the network, the autoencoder, a text encoder, a tokenizer, the noise schedule."""

    source: str
    """``owner/name``, or a folder; with the revision and the variant where they were asked for."""
    digest: str = ""
    """Of its content; empty where it is not on this machine."""

    def as_dict(self) -> dict[str, str]:
        return {"source": self.source, "digest": self.digest}

    def is_another(self, other: BasePart) -> bool:
        """By content where both are known, else by where they come from."""
        if self.digest and other.digest:
            return self.digest != other.digest
        return self.source != other.source


BaseWeights = Mapping[str, BasePart]
"""Subfolder of a pipeline -> which part it is."""


def cached_snapshot(cache: Path, repository: str, revision: str | None) -> Path | None:
    """The folder of a repository's files in a Hugging Face cache; None where it is not there."""
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
    """Where a model lies, given as an absolute folder or a repository id; None where it would have to be downloaded."""
    return Path(source) if Path(source).is_absolute() else cached_snapshot(cache, source, revision)


def base_weights(model: ModelOptions, spec: FamilySpec, cache: Path) -> BaseWeights:
    """What the options mean on this machine now. ``cache``: the folder of the Hugging Face cache. Downloads nothing."""
    return {name: _component(model, spec, cache, name) for name in spec.base_folders}


def prediction_type(model: ModelOptions, spec: FamilySpec, cache: Path) -> str | None:
    """What the network learns: the option where it is set, else what its weights were trained for; None where that is not known here."""
    if spec.objective == "flow_matching":
        return spec.objective
    if model.prediction_type:
        return model.prediction_type
    folder = _find(model, spec, cache, "scheduler")
    try:
        config = read_small_json(folder / "scheduler_config.json") if folder else None
    except OSError:
        return None
    return str(config.get("prediction_type", spec.objective)) if isinstance(config, dict) else None


def _component(model: ModelOptions, spec: FamilySpec, cache: Path, name: str) -> BasePart:
    source, revision, variant = _source(model, spec, name)
    found = _find(model, spec, cache, name)
    named = source + (f" at {revision}" if revision else "") + (f" ({variant})" if variant else "")
    return BasePart(named, component_digest(found, variant) if found else "")


def _source(model: ModelOptions, spec: FamilySpec, name: str) -> tuple[str, str | None, str | None]:
    """(repository or folder, revision, variant)"""
    replaced, _ = _replacement(model, spec, name)
    if replaced:
        return replaced, None, None
    return model.pretrained_model_name_or_path or spec.repository(model.model_flavour), model.revision, model.variant


def _find(model: ModelOptions, spec: FamilySpec, cache: Path, name: str) -> Path | None:
    """The folder of a component; None where it is not on this machine."""
    source, revision, _ = _source(model, spec, name)
    replaced, folder = _replacement(model, spec, name)
    root = local_folder(cache, source, revision)
    if root is None:
        return None
    if (root / folder).is_dir():
        return root / folder
    if replaced:
        return root if name == "vae" and (root / "config.json").is_file() else None
    if not spec.companion or Path(source).is_absolute() or name in {component.folder for component in spec.trained.values()}:
        return None
    beside = local_folder(cache, spec.companion, None)
    return beside / folder if beside is not None and (beside / folder).is_dir() else None


def _replacement(model: ModelOptions, spec: FamilySpec, name: str) -> tuple[str | None, str]:
    """(source that an option names instead of the base model, the component's subfolder there)"""
    if name == "vae":
        return model.pretrained_vae_model_name_or_path, name
    plain = {spec.prompts.t5_folder: "text_encoder", tokenizer_of(spec.prompts.t5_folder): "tokenizer"}
    if name in plain and model.pretrained_t5_model_name_or_path:
        return model.pretrained_t5_model_name_or_path, plain[name]
    return None, name


def component_digest(folder: Path, variant: str | None = None) -> str:
    """Of configuration, vocabulary and weights, whatever folder they lie in; empty where they cannot be read."""
    files = {path for pattern in VOCABULARY for path in folder.glob(pattern) if ".index." not in path.name}
    try:
        entries = [(path.name, _text_digest(path)) for path in sorted(files)]
        entries += [(path.name, weight_digest(path)) for path in _weights(folder, variant)]
    except OSError:
        return ""
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:DIGITS] if entries else ""


def _weights(folder: Path, variant: str | None) -> list[Path]:
    """The files that the loaders take: those of the variant where there are some, else those of none."""
    by_variant: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        by_variant.setdefault(SHARD.sub("", path.name.removesuffix(".safetensors")).partition(".")[2], []).append(path)
    wanted = by_variant.get(variant or "") or by_variant.get("")
    return wanted or [path for paths in by_variant.values() for path in paths]


def _text_digest(path: Path) -> str:
    """A configuration by what it says, whoever wrote it; anything else by its bytes."""
    content = read_small(path, LARGEST_LIST_BYTES)
    if path.name in ("config.json", "scheduler_config.json"):
        try:
            document = read_document(content)
        except ValueError:
            document = None
        if isinstance(document, dict):
            stated = {key: value for key, value in document.items() if not key.startswith("_") and key not in NOT_CONTENT}
            content = json.dumps(stated, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def read_base(document: object) -> BaseWeights | None:
    """What ``training_state.json`` says of it; None for checkpoints that do not say it."""
    if not isinstance(document, Mapping):
        return None
    found = {name: entry for name, entry in document.items() if isinstance(entry, Mapping)}
    return {name: BasePart(str(entry.get("source", "")), str(entry.get("digest", ""))) for name, entry in found.items()}


def base_document(base: BaseWeights) -> dict[str, Any]:
    return {name: component.as_dict() for name, component in base.items()}


def base_differences(theirs: BaseWeights, ours: BaseWeights) -> list[str]:
    """Sentences of what is another one now, components of one source together."""
    changed: dict[tuple[str, str], list[str]] = {}
    for name, component in ours.items():
        if name in theirs and component.is_another(theirs[name]):
            changed.setdefault((theirs[name].source, component.source), []).append(name)
    return [
        f"base model ({', '.join(names)}) was {old} and is {new}"
        if old != new
        else f"base model {new} is not the one it was: the files of {', '.join(names)} were replaced"
        for (old, new), names in changed.items()
    ]


def moved_sources(theirs: BaseWeights, ours: BaseWeights) -> list[str]:
    """Sentences of components that have the same content under another name."""
    pairs = {
        (theirs[name].source, component.source)
        for name, component in ours.items()
        if name in theirs and component.digest and component.digest == theirs[name].digest and component.source != theirs[name].source
    }
    return [f"{new} holds the same weights as {old}" for old, new in sorted(pairs)]

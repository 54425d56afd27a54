"""Identifies the base weights of a run. Every checkpoint records them, and they are compared before a run resumes. Standard library only.

A component is identified by its content, so that a model that was moved or downloaded again is the same. A component that is not on this
machine yet is identified by its repository, revision and variant.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer_engine.config.components import ComponentSource, component_source, find_component
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.config.resuming.weight_digests import weight_digest
from trainer_engine.contract.files import LARGEST_LIST_BYTES, read_document, read_small

SHARD = re.compile(r"-\d+-of-\d+")
VOCABULARY = ("*.json", "*.model", "*.txt")
NOT_CONTENT = ("transformers_version", "torch_dtype", "dtype")
"""Keys of configuration files that only describe the program that wrote them; so do keys that begin with an underscore."""
DIGITS = 32


@dataclass(frozen=True)
class BasePart:
    """One part of a base model: the network, the autoencoder, a text encoder, a tokenizer, the noise schedule."""

    source: str
    """``owner/name`` or a folder, with the revision and the variant if they are set."""
    digest: str = ""
    """Hash of its content; empty if it is not on this machine."""

    def as_dict(self) -> dict[str, str]:
        return {"source": self.source, "digest": self.digest}

    def is_another(self, other: BasePart) -> bool:
        """Whether the components differ: in content if both are known, else in source."""
        if self.digest and other.digest:
            return self.digest != other.digest
        return self.source != other.source


BaseWeights = Mapping[str, BasePart]
"""Name of a component -> its identity."""


def base_weights(model: ModelOptions, spec: FamilySpec, cache: Path) -> BaseWeights:
    """Returns the base weights that the options select, without downloading. ``cache`` is the folder of the Hugging Face cache."""
    return {name: _component(component_source(model, spec, name), cache) for name in spec.base_folders}


def _component(source: ComponentSource, cache: Path) -> BasePart:
    found = find_component(source, cache)
    return BasePart(str(source), component_digest(found.folder, source.variant, found.file) if found else "")


def component_digest(folder: Path, variant: str | None = None, file: Path | None = None) -> str:
    """Returns a hash of configuration, vocabulary and weights, independent of the folder, or an empty string if they cannot be read.

    ``file`` holds the weights of a component whose ``folder`` has only its configuration.
    """
    files = {path for pattern in VOCABULARY for path in folder.glob(pattern) if ".index." not in path.name}
    try:
        entries = [(path.name, _text_digest(path)) for path in sorted(files)]
        weights = [("one file", file)] if file else [(path.name, path) for path in _weights(folder, variant)]
        entries += [(name, weight_digest(path)) for name, path in weights]
    except OSError:
        return ""
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:DIGITS] if entries else ""


def _weights(folder: Path, variant: str | None) -> list[Path]:
    """Returns the weights files that the libraries load: those of the variant if there are any, else those without one."""
    by_variant: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        by_variant.setdefault(SHARD.sub("", path.name.removesuffix(".safetensors")).partition(".")[2], []).append(path)
    wanted = by_variant.get(variant or "") or by_variant.get("")
    return wanted or [path for paths in by_variant.values() for path in paths]


def _text_digest(path: Path) -> str:
    """Hashes a configuration by its values, independent of the program that wrote it, and any other file by its bytes."""
    content = read_small(path, LARGEST_LIST_BYTES)
    if path.name in ("config.json", "scheduler_config.json"):
        try:
            document = read_document(content)
        except ValueError:
            document = None
        if isinstance(document, dict):
            values = {key: value for key, value in document.items() if not key.startswith("_") and key not in NOT_CONTENT}
            content = json.dumps(values, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def read_base(document: object) -> BaseWeights | None:
    """Reads the base weights from ``training_state.json``, or None for checkpoints that do not record them."""
    if not isinstance(document, Mapping):
        return None
    found = {name: entry for name, entry in document.items() if isinstance(entry, Mapping)}
    return {name: BasePart(str(entry.get("source", "")), str(entry.get("digest", ""))) for name, entry in found.items()}


def base_document(base: BaseWeights) -> dict[str, Any]:
    return {name: component.as_dict() for name, component in base.items()}


def base_differences(theirs: BaseWeights, ours: BaseWeights) -> list[str]:
    """Returns a text for each changed source of base weights, with its components."""
    changed: dict[tuple[str, str], list[str]] = {}
    for name, component in ours.items():
        if name in theirs and component.is_another(theirs[name]):
            changed.setdefault((theirs[name].source, component.source), []).append(name)
    return [
        f"base model ({', '.join(names)}) was {old} and is {new}"
        if old != new
        else f"base model {new} has changed: the files of {', '.join(names)} were replaced"
        for (old, new), names in changed.items()
    ]


def moved_sources(theirs: BaseWeights, ours: BaseWeights) -> list[str]:
    """Returns a text for each source whose components have the same content under another name."""
    pairs = {
        (theirs[name].source, component.source)
        for name, component in ours.items()
        if name in theirs and component.digest and component.digest == theirs[name].digest and component.source != theirs[name].source
    }
    return [f"{new} holds the same weights as {old}" for old, new in sorted(pairs)]

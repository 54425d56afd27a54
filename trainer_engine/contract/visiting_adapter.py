"""The adapter that only validations see (``validation_adapter_path``): where it lies, and what its images are called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePath

OPTION = "validation_adapter_path"
USUAL_FILE = "pytorch_lora_weights.safetensors"
ENDING = ".safetensors"
COMPARISON, NONE = "comparison", "none"
ADDRESS = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::(?P<file>[^:\\\0]+))?\Z", re.ASCII)


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the hub."""

    repository: str
    file: str


def hub_file(text: str) -> HubFile | None:
    """What ``owner/name`` or ``owner/name:file`` means; None where the text can only be a path on this machine."""
    found = ADDRESS.match(text)
    if found is None or ".." in text or "--" in found["repository"]:
        return None
    if found["file"] is None and text.endswith(ENDING):
        return None
    return HubFile(found["repository"], found["file"] or USUAL_FILE)


def label_of(path: str, name: str | None) -> str:
    """What stands behind the shortname of images: the name that was given, or what the file, folder or repository is called."""
    if name:
        return name
    there = hub_file(path)
    if there is not None and not path.startswith(("/", ".", "~")):
        own = PurePath(there.file).stem
        return PurePath(there.repository).name if there.file == USUAL_FILE else own
    place = PurePath(path)
    return place.parent.name if place.name == USUAL_FILE else place.name.removesuffix(ENDING)


def visiting_label(path: str | None, name: str | None, mode: str) -> str:
    """The label of a run's images that are drawn with the adapter; empty where none are."""
    return label_of(path, name) if path and mode != NONE else ""

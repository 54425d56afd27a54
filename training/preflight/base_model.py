"""Finds the folder and the size of a base model without torch and without downloading."""

from __future__ import annotations

import math
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from trainer_engine.config.families import FamilySpec, trained_folders
from trainer_engine.config.resuming import base_weights
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import UnreadableFile, is_file, is_folder, open_regular, read_document, read_small_text

DEFAULT_ENDPOINT = "https://huggingface.co"
ANSWER_SECONDS = 5.0
LONGEST_HEADER_BYTES = 16 << 20
MOST_SHARDS = 500
BROKEN_HEADER = (OSError, ValueError, struct.error, TypeError, KeyError, AttributeError)
TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class HubSettings:
    """The settings of the Hugging Face hub from the environment."""

    cache: Path
    endpoint: str
    token: str
    is_offline: bool

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> HubSettings:
        root = Path(
            variables.get("HF_HOME") or Path(variables.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
        ).expanduser()
        cache = Path(variables.get("HF_HUB_CACHE") or root / "hub").expanduser()
        token_file = Path(variables.get("HF_TOKEN_PATH") or root / "token").expanduser()
        try:
            token = variables.get("HF_TOKEN") or read_small_text(token_file).strip()
        except OSError:
            token = ""
        offline = variables.get("HF_HUB_OFFLINE", "").lower() in TRUE or variables.get("TRANSFORMERS_OFFLINE", "").lower() in TRUE
        return cls(cache, (variables.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"), token, offline)


def cached_snapshot(hub: HubSettings, repository: str, revision: str | None) -> Path | None:
    """The folder of a repository's files in the local cache; None if it is not cached."""
    return base_weights.cached_snapshot(hub.cache, repository, revision)


def find_weights(source: str, revision: str | None, hub: HubSettings) -> Path | None:
    """The local folder of a model, given as a folder or a repository id; None if it has to be downloaded."""
    return base_weights.local_folder(hub.cache, source, revision)


def scheduler_config(base: Path) -> Mapping[str, Any]:
    """The noise schedule in the folder of a model; empty if it has none that can be read: the engine reports that when it loads it."""
    try:
        document = read_document(read_small_text(base / "scheduler" / "scheduler_config.json"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def check_access(option: str, source: str, revision: str | None, hub: HubSettings) -> Problem | None:
    """The problem that keeps the engine from loading a model; None if it is local or on the hub. A note if the hub does not answer."""
    if Path(source).is_absolute():
        return _check_folder(option, Path(source))
    if cached_snapshot(hub, source, revision) is not None:
        return None
    if hub.is_offline:
        message = f"The model {source} is not in the local cache ({hub.cache}), and the hub is switched off (HF_HUB_OFFLINE)."
        return Problem.error(option, "model_not_cached", message, got=source, hint="download it first, or give the path of a local folder")
    return _ask_hub(option, source, revision, hub)


def check_file(option: str, repository: str, file: str, hub: HubSettings) -> Problem | None:
    """Like ``check_access``, for one file of a repository that is not in the cache."""
    got = f"{repository}:{file}"
    if hub.is_offline:
        message = f"{got} is not in the local cache ({hub.cache}), and the hub is switched off (HF_HUB_OFFLINE)."
        return Problem.error(option, "model_not_cached", message, got=got, hint="download it first, or give the path of a local file")
    return _ask_hub(option, repository, None, hub, file)


def _check_folder(option: str, folder: Path) -> Problem | None:
    known = (
        "model_index.json",
        "config.json",
        *(f"{name}/config.json" for name in trained_folders()),
        "text_encoder/config.json",
        "vae/config.json",
    )
    if any(is_file(folder / name) for name in known):
        return None
    message = f"{folder} holds no model in the Diffusers layout."
    return Problem.error(
        option, "not_a_model", message, got=str(folder), expected=f"a folder with model_index.json or {trained_folders()[0]}/config.json"
    )


def _ask_hub(option: str, source: str, revision: str | None, hub: HubSettings, file: str = "") -> Problem | None:
    """``file`` must exist in the repository; empty checks the repository only."""
    address = f"{hub.endpoint}/{source}/resolve/{quote(revision or 'main', safe='')}/{quote(file or 'model_index.json')}"
    request = urllib.request.Request(address, method="HEAD")
    if hub.token:
        request.add_unredirected_header("Authorization", f"Bearer {hub.token}")  # other hosts serve the files and must not get it
    try:
        urllib.request.urlopen(request, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        if file and error.headers.get("X-Error-Code", "") == "EntryNotFound":
            message = f"The repository {source} holds no file {file}."
            return Problem.error(option, "not_found", message, got=f"{source}:{file}", expected="one of its files")
        return _refused(option, source, revision, error.code, error.headers.get("X-Error-Code", ""))
    except (OSError, ValueError, HTTPException) as error:
        message = f"It is unknown whether {source} can be downloaded: {hub.endpoint} does not answer ({error})."
        return Problem.note(option, "hub_not_reached", message, got=source)
    return None


def _refused(option: str, source: str, revision: str | None, status: int, code: str) -> Problem | None:
    if code == "EntryNotFound":
        return None
    if code == "GatedRepo" or status == 403:
        hint = "accept its conditions on the hub and log in with `hf auth login`, or set HF_TOKEN"
        return Problem.error(option, "model_gated", f"Access to {source} must be requested on the hub.", got=source, hint=hint)
    if code == "RevisionNotFound":
        return Problem.error(
            "revision", "revision_not_found", f"{source} has no revision {revision}.", got=revision, expected="a branch, tag or commit"
        )
    if status in (401, 404):
        message = f"The hub has no model {source}, or this account may not see it."
        return Problem.error(option, "model_not_found", message, got=source, hint="check the spelling; for a private model set HF_TOKEN")
    return Problem.note(option, "hub_not_reached", f"The hub answered {status} when asked for {source}.", got=source)


def count_parameters(folder: Path, spec: FamilySpec) -> int | None:
    """The number of parameters that a full fine-tune trains, from the headers of safetensors files; None if they cannot be read."""
    shapes = tensor_shapes(folder, spec)
    return sum(math.prod(shape) for shape in shapes.values()) or None if shapes else None


def layer_shapes(folder: Path, spec: FamilySpec) -> dict[str, tuple[int, ...]] | None:
    """Module name -> (out, in) of the linear layers of the trained components; None if they cannot be read."""
    shapes = tensor_shapes(folder, spec)
    if not shapes:
        return None
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}


def module_names(folder: Path, spec: FamilySpec) -> set[str] | None:
    """Full names of the modules of the trained components that hold weights, and of their parents; None if they cannot be read."""
    shapes = tensor_shapes(folder, spec)
    if not shapes:
        return None
    paths = (name.split(".") for name in shapes)
    return {".".join(path[:depth]) for path in paths for depth in range(len(path))}


def tensor_shapes(folder: Path, spec: FamilySpec) -> dict[str, tuple[int, ...]] | None:
    """A folder without the subfolder of any trained component is taken for the folder of the first one."""
    parts = {name: folder / component.folder for name, component in spec.trained.items() if is_folder(folder / component.folder)}
    found: dict[str, tuple[int, ...]] = {}
    for name, part in (parts or {next(iter(spec.trained)): folder}).items():
        for path in sorted(part.glob("*.safetensors"))[:MOST_SHARDS]:
            try:
                found |= {spec.module_prefix(name) + tensor: shape for tensor, shape in shapes_in(path).items()}
            except BROKEN_HEADER:
                return None
    return found


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor -> shape, from the header of a safetensors file. Raises the exceptions in ``BROKEN_HEADER``."""
    with open_regular(path) as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > LONGEST_HEADER_BYTES:
            raise UnreadableFile("its header is too long")
        header = read_document(stream.read(length))
    return {name: _sizes(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}


def _sizes(shape: Any) -> tuple[int, ...]:
    """A shape of a header. Raises ValueError and TypeError."""
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape holds something else than sizes")
    return tuple(shape)


def folder_bytes(folder: Path) -> int:
    """Size of the files in a folder, links followed; 0 without a folder."""
    try:
        return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    except OSError:
        return 0

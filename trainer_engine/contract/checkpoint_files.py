"""Lists the checkpoints in an output folder, and verifies their files. Standard library only.

A checkpoint is a folder ``checkpoint-<step>``, or ``checkpoint-<step>-rolling``, with a ``manifest.json`` that names every other file with
its size and sha256. The manifest is written last, and then the folder is renamed into place; a folder without one is not a checkpoint.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from trainer_engine.contract.files import LARGEST_LIST_BYTES, read_small_json, sha256_of

MANIFEST = "manifest.json"
STATE_FILE = "training_state.json"
"""Progress of the run, and the settings (``identity``) that a run that resumes from it must share."""
OPTIMIZER_DOCUMENT = "optimizer.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
SAMPLES_FILE = "samples.json"
EVALUATIONS_FILE = "evaluations.json"
"""Every evaluation of the run so far; absent if there was none."""
EMA_TENSORS = "ema/weights.safetensors"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
"""Name of adapter files in diffusers."""
EXACT_FILE = "adapter_parameters.safetensors"
"""Exact parameters of an adapter, if the library's own file does not hold them bit for bit."""
LYCORIS_FILE = "lycoris_config.json"
TOP_FILES = frozenset(
    (STATE_FILE, OPTIMIZER_DOCUMENT, OPTIMIZER_TENSORS, SAMPLES_FILE, EVALUATIONS_FILE, EMA_TENSORS, ADAPTER_FILE, EXACT_FILE, LYCORIS_FILE)
)
WEIGHTS_FILE = re.compile(r"(transformer|unet)/(config\.json|diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?)")
"""Matches the files that diffusers saves of a network, in one file or in shards."""
VERSION = 1
ROLLING = "-rolling"
"""Suffix of the name of a rolling checkpoint. Rolling checkpoints have their own limit."""
NAME = re.compile(rf"checkpoint-(\d+)({ROLLING})?")
LARGEST_HASHED_IN_LISTS = 64 << 20
"""In bytes. Lists compare only the size of larger files; ``verify`` reads every byte."""


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint as it is shown in lists."""

    name: str
    path: Path
    step: int
    epoch: int
    loss: float | None
    learning_rate: float
    model_family: str
    created_at: str
    """ISO 8601, UTC."""
    size_bytes: int
    verified: bool
    """Whether every file exists with its size, and the smaller ones with their hash."""
    eval_loss: float | None = None
    """Loss on the eval sets; None if it was not measured or not finite."""
    eval_measure: str = ""
    """Identifies what ``eval_loss`` was measured on; only losses of one measure can be compared. Empty if it was not measured."""
    eval_datasets: tuple[str, ...] = ()

    @property
    def is_rolling(self) -> bool:
        return self.name.endswith(ROLLING)


def checkpoint_name(step: int, *, rolling: bool = False) -> str:
    return f"checkpoint-{step}{ROLLING if rolling else ''}"


def step_of(name: str) -> int:
    """Returns the optimizer step in the name of a checkpoint. Raises ValueError if it is not such a name."""
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} is not the name of a checkpoint")
    return int(found[1])


def foreign_files(names: Iterable[str]) -> list[str]:
    """Returns the names that no file of a checkpoint has. A fetched checkpoint must hold only weights and numbers, never programs."""
    return [name for name in names if name not in TOP_FILES and not WEIGHTS_FILE.fullmatch(name)]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint. Raises OSError if there is none, and ValueError if it is invalid."""
    return check_manifest(read_small_json(folder / MANIFEST, LARGEST_LIST_BYTES))


def check_manifest(document: object) -> dict[str, Any]:
    """Checks that a document is a manifest whose paths lie inside the checkpoint, and returns it. Raises ValueError."""
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise ValueError(f"it is not a manifest of version {VERSION}")
    files = document.get("files")
    if not isinstance(files, dict) or not files or not all(_is_entry(name, entry) for name, entry in files.items()):
        raise ValueError("it has no valid list of files")
    if not isinstance(document.get("step"), int):
        raise ValueError("it has no step")
    return document


def _is_entry(name: str, entry: object) -> bool:
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts and str(path) == name and name != MANIFEST
    if not inside or "\\" in name or "\0" in name or not _is_file_name(name) or not isinstance(entry, dict):
        return False
    size = entry.get("size")
    return isinstance(entry.get("sha256"), str) and isinstance(size, int) and not isinstance(size, bool) and size >= 0


def _is_file_name(name: str) -> bool:
    """False for half a surrogate pair, which JSON can hold and no file system can."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return name != "."


def folders(output_dir: Path) -> list[Path]:
    """Returns the folders named like checkpoints, highest step first, and a rolling one after the regular one of the same step.

    Returns an empty list if ``output_dir`` does not exist or cannot be read.
    """
    try:
        entries = [entry for entry in os.scandir(output_dir) if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    ordered = sorted(entries, key=lambda entry: (step_of(entry.name), not entry.name.endswith(ROLLING)), reverse=True)
    return [Path(entry.path) for entry in ordered]


def list_checkpoints(output_dir: Path) -> list[CheckpointInfo]:
    """Returns every checkpoint with a valid manifest, highest step first."""
    found = []
    for folder in folders(output_dir):
        try:
            found.append(_described(folder, read_manifest(folder)))
        except (OSError, ValueError, TypeError, OverflowError):
            continue
    return found


def _described(folder: Path, manifest: dict[str, Any]) -> CheckpointInfo:
    """Raises ValueError, TypeError or OverflowError for invalid values in the manifest."""
    evaluation = _evaluation(manifest)
    return CheckpointInfo(
        name=folder.name,
        path=folder,
        step=manifest["step"],
        epoch=int(manifest.get("epoch", 0)),
        loss=_number_or_none(manifest.get("loss")),
        learning_rate=_number_or_none(manifest.get("learning_rate")) or 0.0,
        model_family=str(manifest.get("model_family", "")),
        created_at=str(manifest.get("created_at", "")),
        size_bytes=sum(entry["size"] for entry in manifest["files"].values()),
        verified=not any(_differences(folder, manifest, LARGEST_HASHED_IN_LISTS)),
        eval_loss=_number_or_none(evaluation.get("loss")),
        eval_measure=str(evaluation.get("measure", "")),
        eval_datasets=tuple(evaluation.get("datasets", ())),
    )


def _number_or_none(value: Any) -> float | None:
    """Returns None for NaN and infinity too, which JSON cannot hold."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _evaluation(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns an empty object if the checkpoint was not evaluated, or the entry is invalid."""
    found = manifest.get("evaluation")
    known = isinstance(found, dict) and isinstance(found.get("loss"), (float, int, type(None))) and isinstance(found.get("datasets"), list)
    return found if isinstance(found, dict) and known else {}


def verify(folder: Path) -> list[str]:
    """Returns one sentence for each problem of a checkpoint, or nothing if every byte is as it was saved."""
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        return [f"{folder.name} has no {MANIFEST}."]
    except (OSError, ValueError) as error:
        return [f"{folder.name}: {MANIFEST} cannot be used: {error}."]
    return list(_differences(folder, manifest, None))


def verify_quickly(folder: Path) -> list[str]:
    """Verifies a checkpoint like ``verify``, but compares only the size of large files."""
    try:
        return list(_differences(folder, read_manifest(folder), LARGEST_HASHED_IN_LISTS))
    except (OSError, ValueError):
        return verify(folder)


def newest_verified(output_dir: Path) -> CheckpointInfo | None:
    """Returns the checkpoint of the highest step that passes ``verify``, or None."""
    return next((info for info in list_checkpoints(output_dir) if info.verified and not verify(info.path)), None)


def _differences(folder: Path, manifest: dict[str, Any], largest_hashed: int | None) -> Iterator[str]:
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            status = path.stat()
            if status.st_size != entry["size"]:
                yield f"{name} has {status.st_size} bytes instead of {entry['size']}."
            elif largest_hashed is None:
                if sha256_of(path) != entry["sha256"]:
                    yield f"{name} was changed: its hash differs."
            elif status.st_size <= largest_hashed and _remembered_hash(str(path), status.st_size, status.st_mtime_ns) != entry["sha256"]:
                yield f"{name} was changed: its hash differs."
        except FileNotFoundError:
            yield f"{name} is missing."
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror or error}."


@lru_cache(maxsize=4096)
def _remembered_hash(path: str, size: int, mtime_ns: int) -> str:
    """Hashes a file once for each size and modification time, since checkpoints are listed often."""
    return sha256_of(Path(path))

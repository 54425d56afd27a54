"""Saves checkpoints atomically: staged in a sibling folder, hashed, synced, the manifest last, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer_engine.checkpointing.snapshot import Copy, HostCopies
from trainer_engine.contract.atomic import means_full, sync_folder
from trainer_engine.contract.checkpoint_files import (
    MANIFEST,
    VERSION,
    CheckpointInfo,
    checkpoint_name,
    list_checkpoints,
)
from trainer_engine.contract.errors import DiskFull
from trainer_engine.contract.events import utc_now
from trainer_engine.contract.files import sha256_of

SPARE_BYTES = 16 << 20
"""Reserve for configuration files and the file system itself."""


@dataclass(frozen=True)
class FixedFile:
    """A file that is the same in every checkpoint of a run: encoded and hashed once."""

    content: bytes
    sha256: str

    @classmethod
    def of_json(cls, document: object) -> FixedFile:
        # NOTE: without indent, json.dumps takes its C encoder, which is some ten times as fast.
        content = (json.dumps(document, sort_keys=True) + "\n").encode("ascii")
        return cls(content, hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Content:
    """What goes into a checkpoint."""

    step: int
    epoch: int
    loss: float | None
    learning_rate: float
    model_family: str
    model_type: str
    save_weights: Callable[[Path], None]
    """Writes the weights into the folder of the checkpoint."""
    weights_bytes: int
    hold_weights: Callable[[Copy], Callable[[Path], None]] | None = None
    """From what copies a tensor: what saves the weights as they are now, whatever later steps do. None where nothing changes them."""
    rolling: bool = False
    documents: Mapping[str, Any] = field(default_factory=dict)
    """File name -> JSON."""
    fixed: Mapping[str, FixedFile] = field(default_factory=dict)
    """By file name."""
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """File name -> tensors."""
    evaluation: Mapping[str, Any] | None = None
    """``loss``, ``measure`` and ``datasets`` of an evaluation of these very weights; None where there was none."""

    @property
    def size_bytes(self) -> int:
        """Disk space of the tensors and the fixed files."""
        tensors = sum(tensor.nbytes for file in self.tensors.values() for tensor in file.values())
        return self.weights_bytes + tensors + sum(len(file.content) for file in self.fixed.values())

    @property
    def name(self) -> str:
        return checkpoint_name(self.step, rolling=self.rolling)

    def held(self, *, keeps: bool = True) -> Content:
        """A copy in host memory, which later steps do not change while it is written.

        Every process has to make it if the weights are sharded; those that do not write it need not keep it.
        """
        with HostCopies(keeps=keeps) as copy:
            save_weights = self.save_weights if self.hold_weights is None else self.hold_weights(copy)
            tensors = {file: {key: copy(tensor) for key, tensor in found.items()} for file, found in self.tensors.items()}
        return replace(self, save_weights=save_weights, tensors=tensors)


def save_checkpoint(output_dir: Path, content: Content) -> CheckpointInfo:
    """Write a checkpoint. Raises DiskFull; earlier checkpoints are then untouched and no partial one is left."""
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir)
    _refuse_without_space(output_dir, content)
    target = output_dir / content.name
    staging = output_dir / f".{target.name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        _write(staging, content)
        _take_place(staging, target)
    except (OSError, SafetensorError) as error:
        if means_full(error):
            raise DiskFull(
                f"The disk is full: {target.name} was not saved, the ones before it are untouched ({error}).",
                hint="free some space and start again; the run goes on from its newest checkpoint",
            ) from error
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return next(info for info in list_checkpoints(output_dir) if info.name == target.name)


def _refuse_without_space(output_dir: Path, content: Content) -> None:
    free, needed = shutil.disk_usage(output_dir).free, content.size_bytes + SPARE_BYTES
    if free < needed:
        raise DiskFull(
            f"A checkpoint needs about {needed / 1e6:.0f} MB, and {output_dir} has {free / 1e6:.0f} MB left.",
            hint="free some space, or lower checkpoints_total_limit",
        )


def _write(staging: Path, content: Content) -> None:
    staging.mkdir()
    content.save_weights(staging)
    for name, tensors in content.tensors.items():
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, path)
    for name, document in content.documents.items():
        (staging / name).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name, file in content.fixed.items():
        (staging / name).write_bytes(file.content)
    files = {str(path.relative_to(staging)): path for path in sorted(staging.rglob("*")) if path.is_file()}
    entries = {name: {"sha256": _synced_hash(path, content.fixed.get(name)), "size": path.stat().st_size} for name, path in files.items()}
    for folder in [path for path in staging.rglob("*") if path.is_dir()]:
        sync_folder(folder)
    _write_manifest(staging / MANIFEST, content, entries)
    sync_folder(staging)


def _write_manifest(path: Path, content: Content, entries: Mapping[str, Any]) -> None:
    manifest = {
        "version": VERSION,
        "name": content.name,
        "step": content.step,
        "epoch": content.epoch,
        "loss": content.loss,
        "learning_rate": content.learning_rate,
        "evaluation": content.evaluation,
        "model_family": content.model_family,
        "model_type": content.model_type,
        "created_at": utc_now(),
        "files": entries,
    }
    with path.open("w", encoding="utf-8") as stream:
        json.dump(manifest, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())


def _synced_hash(path: Path, known: FixedFile | None) -> str:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return known.sha256 if known else sha256_of(path)


def _take_place(staging: Path, target: Path) -> None:
    """Rename ``staging`` to ``target``; one that has the name already goes only after that."""
    previous = target.with_name(f".{target.name}.tmp-previous-{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.replace(previous)
    staging.replace(target)
    sync_folder(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_leftovers(output_dir: Path) -> None:
    """Remove the staging folders of saves that were killed."""
    for path in output_dir.glob(".checkpoint-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)

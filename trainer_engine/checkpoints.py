"""Saving and removing checkpoints. Staged beside, hashed, synced, manifest last, renamed: a checkpoint is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from trainer_engine.contract.atomic import means_full, sync_folder
from trainer_engine.contract.checkpoint_files import (
    MANIFEST,
    VERSION,
    CheckpointInfo,
    checkpoint_name,
    folders,
    list_checkpoints,
    verify,
)
from trainer_engine.contract.digests import sha256_of
from trainer_engine.contract.errors import DiskFull
from trainer_engine.contract.events import utc_now

OPTIMIZER_DOCUMENT = "optimizer.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
SAMPLES_FILE = "samples.json"
EVALUATIONS_FILE = "evaluations.json"
"""Every evaluation of the run so far; not there where there was none."""
EMA_TENSORS = "ema/weights.safetensors"
SPARE_BYTES = 16 << 20
"""What configuration files and the file system itself may need besides."""


@dataclass(frozen=True)
class Content:
    """What goes into a checkpoint."""

    step: int
    epoch: int
    loss: float | None
    learning_rate: float
    model_family: str
    model_type: str
    weights_folder: str
    """Name of the subfolder that ``save_weights`` fills."""
    save_weights: Callable[[Path], None]
    weights_bytes: int
    documents: Mapping[str, Any] = field(default_factory=dict)
    """File name -> JSON."""
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """File name -> tensors."""
    evaluation: Mapping[str, Any] | None = None
    """``loss``, ``measure`` and ``datasets`` of an evaluation of these very weights; None where there was none."""

    @property
    def size_bytes(self) -> int:
        """What the tensors need on disk."""
        return self.weights_bytes + sum(tensor.nbytes for file in self.tensors.values() for tensor in file.values())


def save_checkpoint(output_dir: Path, content: Content) -> CheckpointInfo:
    """Raises DiskFull; whatever was there before is untouched then, and nothing is left beside."""
    output_dir.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output_dir)
    _refuse_without_space(output_dir, content)
    target = output_dir / checkpoint_name(content.step)
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
    content.save_weights(staging / content.weights_folder)
    for name, tensors in content.tensors.items():
        path = staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.cpu() for key, tensor in tensors.items()}, path)
    for name, document in content.documents.items():
        (staging / name).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    files = {str(path.relative_to(staging)): path for path in sorted(staging.rglob("*")) if path.is_file()}
    entries = {name: {"sha256": _synced_hash(path), "size": path.stat().st_size} for name, path in files.items()}
    for folder in [path for path in staging.rglob("*") if path.is_dir()]:
        sync_folder(folder)
    _write_manifest(staging / MANIFEST, content, entries)
    sync_folder(staging)


def _write_manifest(path: Path, content: Content, entries: Mapping[str, Any]) -> None:
    manifest = {
        "version": VERSION,
        "name": checkpoint_name(content.step),
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


def _synced_hash(path: Path) -> str:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return sha256_of(path)


def _take_place(staging: Path, target: Path) -> None:
    """Rename ``staging`` to ``target``; one that has the name already goes only after that."""
    previous = target.with_name(f".{target.name}.tmp-previous-{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.replace(previous)
    staging.replace(target)
    sync_folder(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_leftovers(output_dir: Path) -> None:
    """Take away what saves that were killed have left beside."""
    for path in output_dir.glob(".checkpoint-*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside_later(output_dir: Path, step: int) -> Path | None:
    """Move every ``checkpoint-N`` with N above ``step`` into a folder of their own, and say which; None where there is none.

    They are of another run than the one that goes on from ``step``: it must neither overwrite them nor be resumed from them.
    """
    later = [folder for folder in folders(output_dir) if int(folder.name.rpartition("-")[2]) > step]
    if not later:
        return None
    aside = output_dir / f"earlier-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:4]}"
    aside.mkdir()
    for folder in later:
        folder.replace(aside / folder.name)
    sync_folder(aside)
    sync_folder(output_dir)
    return aside


def prune(output_dir: Path, limit: int, keep: str, *, protected: Collection[str] = ()) -> list[str]:
    """Remove the oldest checkpoints until ``limit`` are left (0: none is removed); their names.

    ``keep`` is the one just saved: it always stays, and unless it verifies nothing is removed. Those ``protected`` stay too, though they
    count. Only folders with our manifest count.
    """
    found = list_checkpoints(output_dir)
    surplus = len(found) - limit
    if not limit or surplus <= 0 or verify(output_dir / keep):
        return []
    removed = []
    may_go = [info for info in found if info.name != keep and info.name not in protected]
    for info in sorted(may_go, key=lambda info: info.step)[:surplus]:
        going = info.path.with_name(f".{info.name}.tmp-removed-{uuid.uuid4().hex[:8]}")
        info.path.replace(going)
        shutil.rmtree(going, ignore_errors=True)
        removed.append(info.name)
    return removed

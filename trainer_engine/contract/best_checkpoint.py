"""Finds the checkpoint with the lowest evaluation loss. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from trainer_engine.contract.atomic import write_atomically
from trainer_engine.contract.checkpoint_files import CheckpointInfo, list_checkpoints

BEST_FILE = "best_checkpoint.json"
"""File in ``output_dir`` for people and programs. It is derived from the manifests of the checkpoints."""


def best_of(checkpoints: Sequence[CheckpointInfo]) -> CheckpointInfo | None:
    """Returns the checkpoint with the lowest loss, the earliest one of several, or None if none was evaluated.

    Only checkpoints with the same measure as the newest evaluated one are compared.
    """
    newest = max((info for info in checkpoints if info.eval_measure), key=lambda info: info.step, default=None)
    if newest is None:
        return None
    measured = [
        (info.eval_loss, info.step, info)
        for info in checkpoints
        if info.verified and info.eval_measure == newest.eval_measure and info.eval_loss is not None
    ]
    return min(measured, key=lambda one: one[:2])[2] if measured else None


def best_names(output_dir: Path) -> list[str]:
    """Returns a list with the name of the best checkpoint in ``output_dir``, or an empty one."""
    best = best_of(list_checkpoints(output_dir))
    return [best.name] if best else []


def point_to_best(output_dir: Path) -> CheckpointInfo | None:
    """Writes ``BEST_FILE`` for the checkpoints in ``output_dir`` and returns the best one. Without one the file is removed."""
    best = best_of(list_checkpoints(output_dir))
    path = output_dir / BEST_FILE
    if best is None:
        path.unlink(missing_ok=True)
        return None
    document = {"name": best.name, "step": best.step, "eval_loss": best.eval_loss, "datasets": list(best.eval_datasets)}
    write_atomically(path, f"{json.dumps(document, indent=1)}\n".encode())
    return best

"""Which checkpoints of an output folder stay, and where the others go."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Collection
from pathlib import Path

from trainer_engine.contract.atomic import sync_folder
from trainer_engine.contract.checkpoint_files import folders, list_checkpoints, step_of, verify


def set_aside_later(output_dir: Path, step: int) -> Path | None:
    """Move every checkpoint of a step above ``step`` into a folder of their own, and say which; None where there is none.

    They are of another run than the one that goes on from ``step``: it must neither overwrite them nor be resumed from them.
    """
    later = [folder for folder in folders(output_dir) if step_of(folder.name) > step]
    if not later:
        return None
    aside = output_dir / f"earlier-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:4]}"
    aside.mkdir()
    for folder in later:
        folder.replace(aside / folder.name)
    sync_folder(aside)
    sync_folder(output_dir)
    return aside


def prune(output_dir: Path, limit: int, keep: str, *, rolling_limit: int = 0, protected: Collection[str] = frozenset()) -> list[str]:
    """Remove the oldest checkpoints until ``limit`` usual and ``rolling_limit`` rolling ones are left; the names of those removed.

    A limit of 0 or less removes none of its kind. ``keep`` is the one just saved: it always stays, and unless it verifies nothing is
    removed, so that one that verifies is always left. Those named in ``protected`` stay too. Only folders with our manifest count.
    Raises OSError where one cannot be removed; the others are removed all the same.
    """
    found, surplus = list_checkpoints(output_dir), []
    for rolling, most in ((False, limit), (True, rolling_limit)):
        alike = [info for info in found if info.is_rolling is rolling]
        removable = sorted((info for info in alike if info.name != keep and info.name not in protected), key=lambda info: info.step)
        if most > 0:
            surplus += removable[: max(0, len(alike) - most)]
    if not surplus or verify(output_dir / keep):
        return []
    troubles = []
    for info in surplus:
        try:
            remove(info.path)
        except OSError as error:
            troubles.append(error)
    if troubles:
        raise troubles[0]
    return [info.name for info in surplus]


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that a checkpoint with its name is always complete. A missing one is no error.

    Raises OSError.
    """
    going = checkpoint.with_name(f".{checkpoint.name}.tmp-removed-{uuid.uuid4().hex[:8]}")
    try:
        checkpoint.replace(going)
    except FileNotFoundError:
        return
    shutil.rmtree(going, ignore_errors=True)

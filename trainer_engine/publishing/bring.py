"""Downloads the checkpoint that a run continues from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.config.resuming.remote_checkpoint import EXPECTED, NotReachable, locate
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.publishing.task import Mover, Task, TaskOutcome

NOTHING: Mapping[str, Any] = MappingProxyType({})
PAUSES = (1.0, 4.0)
"""Seconds before the second and third attempt. Files of earlier attempts are kept."""


def bring_checkpoint(
    address: str,
    output_dir: Path,
    targets: Sequence[PublishTarget],
    expected: Mapping[str, str],
    moved: Callable[[int, int], None],
    identity: Mapping[str, Any] = NOTHING,
) -> str:
    """Download a checkpoint into ``output_dir`` and return its name. Raises CheckpointUnusable.

    ``expected`` must agree with its manifest, which is checked before the download; ``identity`` must agree with its training state, which
    is checked before the checkpoint gets its name. ``moved`` receives (bytes transferred, bytes in total).
    """
    try:
        found = locate(address, targets)
    except NotReachable as error:
        raise CheckpointUnusable(str(error), hint=f"give {EXPECTED}, or the name of a checkpoint in output_dir") from error
    output_dir.mkdir(parents=True, exist_ok=True)
    task = Task(
        action="fetch",
        target=found.provider.as_dict(),
        folder=str(output_dir),
        remote=found.path,
        expected=dict(expected),
        identity=dict(identity),
    )
    outcome = _try(task, moved)
    for pause in PAUSES:
        if outcome.arrived or outcome.permanent:
            break
        time.sleep(pause)
        outcome = _try(task, moved)
    if not outcome.arrived:
        raise CheckpointUnusable(f"{address} cannot be resumed from: {outcome.trouble}", hint=outcome.hint)
    return outcome.address


def _try(task: Task, moved: Callable[[int, int], None]) -> TaskOutcome:
    mover = Mover(task)
    try:
        return mover.wait(moved)
    finally:
        mover.end()  # a stop request raises during the wait

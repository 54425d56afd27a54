"""Brings the checkpoint that a run is to go on from, where it lies at a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer_engine.config.publishing import PublishTarget
from trainer_engine.config.resuming.remote_checkpoint import EXPECTED, NotReachable, locate
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.publishing.task import Mover, Outcome, Task

NOTHING: Mapping[str, Any] = MappingProxyType({})
PAUSES = (1.0, 4.0)
"""Seconds before the second try and the third. What the tries before have brought stays."""


def bring_checkpoint(
    address: str,
    output_dir: Path,
    targets: Sequence[PublishTarget],
    expected: Mapping[str, str],
    moved: Callable[[int, int], None],
    identity: Mapping[str, Any] = NOTHING,
) -> str:
    """The name of the checkpoint, whole in ``output_dir``. ``moved`` hears (bytes, of how many). Raises CheckpointUnusable.

    ``expected`` is compared with its manifest before anything is fetched, ``identity`` with its training state before it takes its place.
    """
    try:
        found = locate(address, targets)
    except NotReachable as error:
        raise CheckpointUnusable(str(error), hint=f"give {EXPECTED}, or the name of a checkpoint in output_dir") from error
    output_dir.mkdir(parents=True, exist_ok=True)
    task = Task("fetch", found.provider.as_dict(), str(output_dir), found.path, dict(expected), dict(identity))
    outcome = _try(task, moved)
    for pause in PAUSES:
        if outcome.arrived or outcome.hopeless:
            break
        time.sleep(pause)
        outcome = _try(task, moved)
    if not outcome.arrived:
        raise CheckpointUnusable(f"{address} cannot be resumed from: {outcome.trouble}", hint=outcome.hint)
    return outcome.address


def _try(task: Task, moved: Callable[[int, int], None]) -> Outcome:
    mover = Mover(task)
    try:
        return mover.wait(moved)
    finally:
        mover.end()  # a stop breaks in while it is waited for

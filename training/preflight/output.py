"""Checks of the output folder and of the checkpoints in it before a run starts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.output_lock import holder_of
from training.preflight.estimates import size


def output_problems(options: TrainingOptions, waits_for: Collection[str]) -> Iterator[Problem]:
    """Whether another run writes to the output folder. ``waits_for`` holds the ids of runs that the queue would let end first."""
    output_dir = Path(options.run.output_dir)
    holder = holder_of(output_dir)
    if holder is None:
        return
    refusal = holder.refusal(output_dir)
    if holder.job_id in waits_for:
        message = f"{refusal.message} This run waits in the queue until that one has ended."
        yield Problem.note("output_dir", "waits_for_run", message, got=str(output_dir))
    else:
        yield Problem.error("output_dir", refusal.code, refusal.message, got=str(output_dir), hint=refusal.hint)


def saving_problems(options: TrainingOptions, free: int) -> Iterator[Problem]:
    """Notes about checkpoint options and disk space. ``free`` is the number of bytes on the disk of the output folder."""
    chosen = options.checkpointing
    if chosen.checkpointing_use_tempdir:
        message = (
            "Checkpoints are always written to a temporary folder and renamed when complete; checkpointing_use_tempdir changes nothing."
        )
        yield Problem.note("checkpointing_use_tempdir", "always_so", message, got=True)
    if free < chosen.disk_low_bytes:
        what = {"stop": "end", "wait": "wait", "script": "run disk_low_script"}[chosen.disk_low_action]
        message = f"{size(free)} are free, less than disk_low_threshold: the run would {what} before its first checkpoint."
        yield Problem.warning("disk_low_threshold", "disk_is_low", message, got=chosen.disk_low_threshold, hint="free some space")


def with_copy(memory: Mapping[str, Any], checkpoint: int) -> dict[str, Any]:
    """The memory estimate with a remark on the host memory that writing a checkpoint of this many bytes takes."""
    return {**memory, "text": f"{memory['text']}; {size(checkpoint)} more of the host's while a checkpoint is written"}

"""Whether another run writes into the output folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.output_lock import holder_of


def output_problems(options: TrainingOptions, waits_for: Collection[str]) -> Iterator[Problem]:
    """``waits_for``: ids of the runs that a queue would let end first."""
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

"""Ties a run to the stores that its options name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer_engine.config.destinations import run_name
from trainer_engine.config.options import TrainingOptions
from trainer_engine.loop.callbacks.publishing import PublishingCallback, UploadDone
from trainer_engine.publishing.bring import bring_checkpoint
from trainer_engine.publishing.providers import read_targets
from trainer_engine.publishing.uploads import Uploads
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.stages import Advance, Stages


def make_publishing(
    options: TrainingOptions,
    results: Mapping[str, str],
    stages: Stages,
    processes: Processes,
    requests: ControlRequests,
    on_uploaded: Callable[[UploadDone], None],
) -> PublishingCallback:
    """The callback that uploads; it has nothing to do where no store is named."""
    targets, troubles = read_targets(options)
    uploads = Uploads(Path(options.run.output_dir), {target.key: target for target in targets})
    return PublishingCallback(
        uploads=uploads,
        run_name=run_name(options),
        results=dict(results),
        troubles=troubles,
        stages=stages,
        processes=processes,
        requests=requests,
        on_uploaded=on_uploaded,
    )


def bring_wanted(options: TrainingOptions, identity: Mapping[str, Any], requests: ControlRequests, advance: Advance) -> None:
    """The checkpoint that ``resume_from_checkpoint`` names by an address, into ``output_dir``, if it is of a run of this identity.

    Raises CheckpointUnusable, and Stopped.
    """

    def moved(done: int, total: int) -> None:
        requests.raise_if_stopped()
        advance(done, total)

    expected = {"model_family": options.model.model_family, "model_type": options.model.model_type}
    targets, _ = read_targets(options)
    address, output_dir = options.checkpointing.resume_from_checkpoint, Path(options.run.output_dir)
    bring_checkpoint(address, output_dir, targets, expected, moved, identity)

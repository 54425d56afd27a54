"""What a run is called where it is uploaded to, and the hub's repository among these places."""

from __future__ import annotations

import re
from pathlib import PurePath

from trainer_engine.config.options import REGISTRY, TrainingOptions
from trainer_engine.config.publishing import HUB, PublishTarget


def run_name(options: TrainingOptions) -> str:
    """What a run is called at every store: the last part of ``hub_model_id``, else the project's name, else that of ``output_dir``."""
    project = options.reporting.tracker_project_name
    given = project if project != REGISTRY["tracker_project_name"].default else ""
    chosen = (options.publishing.hub_model_id or "").rpartition("/")[2] or given or PurePath(options.run.output_dir).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", chosen).strip("-.")[:96] or "simpletuner"


def hub_target(options: TrainingOptions) -> PublishTarget | None:
    """The hub's repository; None without ``push_to_hub``."""
    wanted = options.publishing
    if not wanted.push_to_hub:
        return None
    repository = wanted.hub_model_id or run_name(options)
    return PublishTarget(HUB, repository, private=wanted.model_card_private, takes_checkpoints=wanted.push_checkpoints_to_hub)

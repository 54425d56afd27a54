"""Where a run reports and uploads to: its trackers, its name at storage providers, and the repository on the hub."""

from __future__ import annotations

import netrc
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from trainer_engine.config.options import REGISTRY, TrainingOptions
from trainer_engine.config.publishing import HUB, PublishTarget

KNOWN = ("tensorboard", "wandb")
LATER = ("simpletuner", "swanlab", "comet_ml", "custom-tracker", "all")
NOBODY = ("", "none", "null")
WANDB_HOST = "api.wandb.ai"


def parse_trackers(text: str) -> tuple[str, ...]:
    """Returns the trackers in ``report_to`` without duplicates. Raises ValueError that names the first unknown one."""
    words = [word.strip().lower() for word in text.split(",")]
    found = [word for word in words if word not in NOBODY]
    for word in found:
        if word in LATER:
            raise ValueError(f"{word} is not available yet")
        if word not in KNOWN:
            raise ValueError(f"there is no tracker {word!r}")
    return tuple(dict.fromkeys(found))


def has_wandb_login(variables: Mapping[str, str]) -> bool:
    """Whether an API key of Weights & Biases is set, or ``wandb login`` has stored one in the netrc file."""
    if variables.get("WANDB_API_KEY"):
        return True
    path = Path(variables.get("NETRC") or Path(variables.get("HOME", "~")).expanduser() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def run_name(options: TrainingOptions) -> str:
    """Returns the run's name at every provider: the last part of ``hub_model_id``, else the project's name, else that of ``output_dir``."""
    project = options.reporting.tracker_project_name
    given = project if project != REGISTRY["tracker_project_name"].default else ""
    chosen = (options.publishing.hub_model_id or "").rpartition("/")[2] or given or PurePath(options.run.output_dir).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", chosen).strip("-.")[:96] or "simpletuner"


def hub_target(options: TrainingOptions) -> PublishTarget | None:
    """Returns the repository on the hub as a target, or None without ``push_to_hub``."""
    wanted = options.publishing
    if not wanted.push_to_hub:
        return None
    repository = wanted.hub_model_id or run_name(options)
    return PublishTarget(HUB, repository, private=wanted.model_card_private, takes_checkpoints=wanted.push_checkpoints_to_hub)

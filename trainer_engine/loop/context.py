"""What a run is put together from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer_engine.config.datasets import Dataloader
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.path_rule import EVERYWHERE, PlaceRule
from trainer_engine.hooks.runner import HookRunner
from trainer_engine.report.background import BackgroundRenderer
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.journal_room import JournalRoom
from trainer_engine.runtime.stages import Stages


@dataclass(frozen=True)
class RunContext:
    """What a run is given before anything of its own is loaded."""

    options: TrainingOptions
    dataloader: Dataloader
    processes: Processes
    stages: Stages
    requests: ControlRequests
    media: Path
    """Folder for images that only events show."""
    resident_at_start: int = 0
    """Bytes of the process before anything of the run was loaded."""
    memory_estimate: Mapping[str, int] = field(default_factory=dict)
    renderer: BackgroundRenderer | None = None
    """Who draws the picture of the run; None where nobody does."""
    scripts: HookRunner | None = None
    """Programs that the run starts; None for a run that starts none."""
    journal_room: JournalRoom | None = None
    """What a run does while its journal cannot be written; None on other processes than the first."""
    places: PlaceRule = EVERYWHERE
    """From where the run may read captions that links lead to."""

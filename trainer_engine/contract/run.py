"""A run is a folder: what lies in it, who writes it, and when.

====================  ==========================================================================================
``job.json``          written once by the web before the engine starts: resolved options and datasets, no secrets
``journal.jsonl``     appended by the engine (rank 0): one event a line, ``seq`` from 0 without gaps
``commands/``         one small file a request, removed when taken up
``media/``            images that events name
``train.log``         stdout and stderr, for people; never parsed
``exit.json``         how it ended, written last
``reserve``           space that the engine holds for its last lines and ``exit.json`` on a full disk; removed at the end
``grid.png``          every validation image, made anew from time to time by ``trainer_engine.report``
``curves.svg``        loss and learning rate, made with it
====================  ==========================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trainer_engine.contract.atomic import PRIVATE_FOLDER_MODE, write_atomically
from trainer_engine.contract.hooks import NOTHING, HookRule
from trainer_engine.contract.path_rule import EVERYWHERE, PlaceRule

PROTOCOL = 1
RESERVED_BYTES = 1 << 20
"""Of the file ``reserve``."""
PICTURE_SECONDS = 120.0
"""The curves of a run that validates and saves nothing are drawn so often."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def job_file(self) -> Path:
        return self.path / "job.json"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def commands(self) -> Path:
        return self.path / "commands"

    @property
    def media(self) -> Path:
        return self.path / "media"

    @property
    def log(self) -> Path:
        return self.path / "train.log"

    @property
    def exit_file(self) -> Path:
        return self.path / "exit.json"

    @property
    def reserve(self) -> Path:
        return self.path / "reserve"

    @property
    def grid(self) -> Path:
        return self.path / "grid.png"

    @property
    def curves(self) -> Path:
        return self.path / "curves.svg"

    def create(self) -> RunFolder:
        """Make the folder and its parts, for this account alone; harmless when they exist."""
        for folder in (self.path, self.commands, self.media):
            folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
        return self


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


SERVER_ONLY = ("webhook_config",)
"""Options that the engine never sees: they hold tokens, and only the server needs them."""


class JobSpec(_Document):
    """What the engine is asked to do."""

    protocol: int = PROTOCOL
    job_id: str
    environment: str = ""
    """Name of the environment that the run came from; empty for a run without one."""
    options: dict[str, Any]
    """Option name without dashes -> value; every path absolute."""
    datasets: list[dict[str, Any]]
    """The entries of the dataloader file; every path absolute."""
    memory_estimate: dict[str, int] = Field(default_factory=dict)
    """What the checks before the start expect on each device: ``bytes``, ``low_bytes``, ``high_bytes``; said beside the peak at the end."""
    scripts: HookRule = NOTHING
    """Which programs the run may start."""
    places: PlaceRule = EVERYWHERE
    """Where the run may read and write."""

    def write(self, folder: RunFolder) -> None:
        write_atomically(folder.job_file, self.model_dump_json(indent=2).encode())

    @classmethod
    def read(cls, folder: RunFolder) -> JobSpec:
        """Raises OSError where the file is missing and pydantic.ValidationError where it is not a job."""
        return cls.model_validate_json(folder.job_file.read_bytes())


class ExitReport(_Document):
    """How a run ended."""

    exit_code: int
    status: str
    """``completed``, ``stopped`` or ``error``."""
    error_code: str | None = None
    message: str = ""
    hint: str = ""
    step: int = 0
    """The last optimizer step that counted."""
    finished_at: str
    """ISO 8601, UTC."""

    def write(self, folder: RunFolder) -> None:
        write_atomically(folder.exit_file, self.as_bytes())

    def as_bytes(self) -> bytes:
        return self.model_dump_json(indent=2).encode()

    @classmethod
    def read(cls, folder: RunFolder) -> ExitReport | None:
        """None while the run has not ended by itself."""
        try:
            content = folder.exit_file.read_bytes()
        except FileNotFoundError:
            return None
        return cls.model_validate_json(content)

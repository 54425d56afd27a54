"""The folder of a run: its files, and who writes each of them when.

====================  ==========================================================================================
``job.json``          written once by the web before the engine starts: resolved options and datasets, no secrets
``journal.jsonl``     appended by the engine (rank 0): one event a line, ``seq`` from 0 without gaps
``commands/``         one small file for each command, removed by the engine when it reads it
``datasets.json``     what the engine found in the datasets, written once
``media/``            images that events name
``train.log``         stdout and stderr, for people; never parsed
``exit.json``         how the run ended, written last
``reserve``           space that the engine holds for its last lines and ``exit.json`` on a full disk; removed at the end
``grid.png``          every validation image, updated from time to time by ``trainer_engine.report``
``curves.svg``        loss and learning rate, updated with it
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
"""Size of the file ``reserve``."""
PICTURE_SECONDS = 120.0
"""Interval of the curves of a run that neither validates nor saves."""


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
    def datasets(self) -> Path:
        return self.path / "datasets.json"

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
        """Creates the folder and its subfolders, accessible to this account only. Existing ones are kept."""
        for folder in (self.path, self.commands, self.media):
            folder.mkdir(mode=PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
        return self


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


SERVER_ONLY = ("webhook_config",)
"""Options with tokens that only the server needs, so that the engine never gets them."""


class JobSpec(_Document):
    """The job that the engine runs: ``job.json``."""

    protocol: int = PROTOCOL
    job_id: str
    environment: str = ""
    """Name of the run's environment; empty if it has none."""
    options: dict[str, Any]
    """Option name without dashes -> value. Every path is absolute."""
    datasets: list[dict[str, Any]]
    """The entries of the dataloader file. Every path is absolute."""
    memory_estimate: dict[str, int] = Field(default_factory=dict)
    """Estimated memory of each device: ``bytes``, ``low_bytes``, ``high_bytes``. The summary reports it with the actual peak."""
    scripts: HookRule = NOTHING
    """The programs that the run may start."""
    places: PlaceRule = EVERYWHERE
    """The paths that the run may read and write."""

    def write(self, folder: RunFolder) -> None:
        write_atomically(folder.job_file, self.model_dump_json(indent=2).encode())

    @classmethod
    def read(cls, folder: RunFolder) -> JobSpec:
        """Reads ``job.json``. Raises OSError if it is missing, and pydantic.ValidationError if it is not a job."""
        return cls.model_validate_json(folder.job_file.read_bytes())


class ExitReport(_Document):
    """How a run ended: ``exit.json``."""

    exit_code: int
    status: str
    """``completed``, ``stopped`` or ``error``."""
    error_code: str | None = None
    message: str = ""
    hint: str = ""
    step: int = 0
    """Number of completed optimizer steps."""
    finished_at: str
    """ISO 8601, UTC."""

    def write(self, folder: RunFolder) -> None:
        write_atomically(folder.exit_file, self.as_bytes())

    def as_bytes(self) -> bytes:
        return self.model_dump_json(indent=2).encode()

    @classmethod
    def read(cls, folder: RunFolder) -> ExitReport | None:
        """Reads ``exit.json``, or returns None if the run has not written it."""
        try:
            content = folder.exit_file.read_bytes()
        except FileNotFoundError:
            return None
        return cls.model_validate_json(content)

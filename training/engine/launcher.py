"""Prepares a run folder and starts the engine in it, for the server and for ``simpletuner train`` alike. Uses no database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer_engine.config.adapters.assistant import assistant_of
from trainer_engine.config.adapters.validation_adapter import validation_adapter_runs
from trainer_engine.config.addresses import PRIVATE_VARIABLE
from trainer_engine.config.datasets import Dataloader
from trainer_engine.config.datasets.secrets import hide_datasets
from trainer_engine.config.destinations import parse_trackers
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.evaluation import CLIP
from trainer_engine.config.options.secrets import for_engine, hide_options
from trainer_engine.config.stages import run_sources
from trainer_engine.contract.atomic import PRIVATE_MODE, write_atomically
from trainer_engine.contract.hooks import HookRule
from trainer_engine.contract.path_rule import PlaceRule
from trainer_engine.contract.run import SERVER_ONLY, JobSpec, RunFolder
from training.engine import process
from training.engine.accelerate_file import AccelerateFile, UnreadableAccelerateConfig
from training.engine.command_line import ACCELERATE_FILE, launch_command
from training.engine.machines import ONE_MACHINE, MachineRule, Machines
from training.engine.process import EngineIdentity

HUB_KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
WANDB_KEYS = ("WANDB_API_KEY",)


@dataclass(frozen=True)
class LaunchSettings:
    """The options that decide how an engine is started, taken from typed options once, when a run is accepted."""

    num_processes: int = 1
    accelerate_config: str | None = None
    withheld: tuple[str, ...] = ()
    """Environment variables that hold keys for services which the run does not use; the engine does not get them."""
    machines: Machines = ONE_MACHINE

    @classmethod
    def of(cls, options: TrainingOptions, dataloader: Dataloader | None = None) -> LaunchSettings:
        spread = options.distributed
        return cls(spread.num_processes, spread.accelerate_config, unused_keys(options, dataloader), Machines.of(spread))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LaunchSettings:
        """The settings that ``as_dict`` wrote; defaults stand for missing keys."""
        return cls(
            num_processes=int(values.get("num_processes", 1)),
            accelerate_config=values.get("accelerate_config"),
            withheld=tuple(values.get("withheld", ())),
            machines=Machines(**values.get("machines", {})),
        )

    @property
    def takes_one_gpu(self) -> bool:
        """Whether the run is one process, which uses one GPU."""
        return self.num_processes <= 1 and self.accelerate_config is None and self.machines.count <= 1

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "withheld": list(self.withheld)}


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Everything that one engine is started with."""

    job_id: str
    environment: str
    """Name of the environment that the run comes from."""
    options: Mapping[str, Any]
    """Resolved values by option name. Secrets in them are hidden before anything is written."""
    datasets: list[dict[str, Any]]
    """The entries of the dataloader file. Secrets in them are hidden before anything is written."""
    memory_estimate: dict[str, int]
    settings: LaunchSettings
    scripts: HookRule
    places: PlaceRule
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Option -> its full text, for the options that hold secrets, and the same for the datasets. They reach the engine in its
    environment, never in a file."""
    opens_private_networks: bool = False
    """Whether the run may reach private networks even if this process's environment does not allow it."""
    machines: MachineRule = MachineRule()
    """The machines that a run may be shared with."""
    devices: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that leave the engine one GPU; empty: it sees all that this process sees."""

    def job_spec(self) -> JobSpec:
        """The content of ``job.json``."""
        return JobSpec(
            job_id=self.job_id,
            environment=self.environment,
            options={name: value for name, value in hide_options(self.options).items() if name not in SERVER_ONLY},
            datasets=hide_datasets(self.datasets),
            memory_estimate=self.memory_estimate,
            scripts=self.scripts,
            places=self.places,
        )


def prepare(folder: RunFolder, launch: Launch) -> None:
    """Create the run folder and write ``job.json``. Raises OSError."""
    launch.job_spec().write(folder.create())


def start(folder: RunFolder, launch: Launch) -> EngineIdentity:
    """Prepare the run folder and start the engine. Raises OSError, and UnreadableAccelerateConfig before the engine starts."""
    prepare(folder, launch)
    settings = launch.settings
    file = AccelerateFile.of(settings.accelerate_config)
    if refusal := launch.machines.refusal(file.machines if file else settings.machines):
        raise UnreadableAccelerateConfig(refusal)
    if file:  # it may have changed since it was checked, and accelerate reads it again
        write_atomically(folder.path / ACCELERATE_FILE, json.dumps(file.document).encode("ascii"), mode=PRIVATE_MODE)
    command, variables = launch_command(folder.path, settings.num_processes, file, machines=settings.machines)
    variables |= launch.devices
    if launch.opens_private_networks:
        variables[PRIVATE_VARIABLE] = "1"
    return process.start(folder, command, variables | for_engine(launch.secrets), launch.scripts.variables, settings.withheld)


def unused_keys(options: TrainingOptions, dataloader: Dataloader | None = None) -> tuple[str, ...]:
    """The environment variables that hold keys for services which a run does not use."""
    wandb = () if "wandb" in parse_trackers(options.reporting.report_to) else WANDB_KEYS
    return (*wandb, *(() if uses_hub(options, dataloader) else HUB_KEYS))


def uses_hub(options: TrainingOptions, dataloader: Dataloader | None = None) -> bool:
    """Whether a run may download from the Hugging Face hub or upload to it: every model and dataset without a local folder comes from
    there."""
    if dataloader is not None and dataloader.repositories:
        return True
    model, validation = options.model, options.validation
    spec = find_spec(model.model_family)
    sources = list(run_sources(options, spec).values()) if spec else [""]
    if options.scoring.evaluation_type == CLIP:
        sources.append(options.scoring.pretrained_evaluation_model_name_or_path)
    sources += [source.path for run in validation_adapter_runs(options.as_values()) for source in run.sources]
    assistant = assistant_of(options.as_values())
    sources += [assistant.path] if assistant else []
    uploads = options.publishing.push_to_hub or options.checkpointing.resume_from_checkpoint.startswith("hf://")
    return uploads or validation.validation_preview or not all(Path(source).is_absolute() for source in sources)

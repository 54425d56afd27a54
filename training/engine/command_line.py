"""The command line of an engine: one process, several CPU ranks with torchrun, or accelerate for GPUs and several hosts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainer_engine
from trainer_engine.config.addresses import HOST
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.run import DistributedOptions
from trainer_engine.config.plain_yaml import UnreadableYaml, parse_yaml
from trainer_engine.contract.files import read_small_text
from training.engine.process import ENGINE_MODULE, passed_environment

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")
PROJECT_ROOT = Path(trainer_engine.__file__).resolve().parents[1]
LARGEST_CONFIG_BYTES = 64 << 10
LARGEST_NUMBER = 65_535
"""The limit for processes, machines and ports."""


class UnreadableAccelerateConfig(ValueError):
    """The file of ``accelerate_config`` is not a valid accelerate configuration; the message says why."""


@dataclass(frozen=True)
class Machines:
    """The machines that share a run, and which of them this is."""

    count: int = 1
    rank: int = 0
    """Number of this machine; 0 is the one to which the others connect."""
    main_ip: str = "127.0.0.1"
    main_port: int = 29500

    @classmethod
    def of(cls, options: DistributedOptions) -> Machines:
        return cls(options.num_machines, options.machine_rank, options.main_process_ip, options.main_process_port)


ONE_MACHINE = Machines()


@dataclass(frozen=True)
class AccelerateFile:
    """The part of an accelerate configuration that decides the command line; accelerate reads the rest itself."""

    use_cpu: bool
    processes: int
    """Of all machines."""
    machines: Machines

    @classmethod
    def read(cls, path: Path) -> AccelerateFile:
        """Raises UnreadableAccelerateConfig."""
        document = _document(path)
        if not isinstance(document, dict):
            raise UnreadableAccelerateConfig(f"{path} holds no settings")
        return cls(
            use_cpu=document.get("use_cpu") is True,
            processes=_whole(document, "num_processes", 1, path),
            machines=Machines(
                _whole(document, "num_machines", 1, path),
                _whole(document, "machine_rank", 0, path),
                _host(document, path),
                _whole(document, "main_process_port", 29500, path),
            ),
        )


def _document(path: Path) -> Any:
    """The value in a YAML file. Error messages quote nothing from the file, because it may be any file of the user."""
    try:
        return parse_yaml(read_small_text(path, LARGEST_CONFIG_BYTES))
    except OSError as error:
        raise UnreadableAccelerateConfig(f"{path} cannot be read: {error.strerror or error}") from error
    except UnreadableYaml as error:
        raise UnreadableAccelerateConfig(f"{path} is {error}") from None


def _whole(document: Mapping[str, Any], key: str, default: int, path: Path) -> int:
    value = document.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_NUMBER:
        raise UnreadableAccelerateConfig(f"{path}: {key} is not a whole number from 0 to {LARGEST_NUMBER}")
    return value


def _host(document: Mapping[str, Any], path: Path) -> str:
    value = document.get("main_process_ip") or "127.0.0.1"
    if not isinstance(value, str) or not HOST.fullmatch(value):
        raise UnreadableAccelerateConfig(f"{path}: main_process_ip is not the name or the address of a machine")
    return value


def visible_gpus(variables: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """How many GPUs an engine would see, found without torch: ``CUDA_VISIBLE_DEVICES``, else the device files."""
    listed = variables.get("CUDA_VISIBLE_DEVICES", variables.get("HIP_VISIBLE_DEVICES"))
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        before_end = names[: names.index("-1")] if "-1" in names else names
        return len([name for name in before_end if name])
    nvidia = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    amd = list((devices / "dri").glob("renderD*")) if (devices / "kfd").exists() else []
    return len(nvidia) or len(amd)


def launch_command(
    run_dir: Path,
    num_processes: int = 1,
    accelerate_config: str | None = None,
    variables: Mapping[str, str] | None = None,
    machines: Machines = ONE_MACHINE,
) -> tuple[list[str], dict[str, str]]:
    """The engine's command line and the environment variables to add to it, for ``process.start``.

    ``num_processes``: those of this machine. ``accelerate_config`` wins over it and over ``machines``. Raises UnreadableAccelerateConfig.
    """
    variables = passed_environment() if variables is None else variables
    search_path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), variables.get("PYTHONPATH", "")]))
    extra = {"PYTHONPATH": search_path, "PYTHONUNBUFFERED": "1"}
    engine = ["-m", ENGINE_MODULE, str(run_dir)]
    if accelerate_config:
        return _from_file(Path(accelerate_config), engine, extra)
    if num_processes <= 1 and machines.count <= 1:
        return [sys.executable, *engine], extra
    if visible_gpus(variables):
        return [*_accelerate(num_processes * machines.count, machines), *engine], extra
    return [*_torchrun(num_processes, machines), *engine], extra | {"ACCELERATE_USE_CPU": "true"}


def process_count(options: TrainingOptions) -> int:
    """The number of processes that share a run: from accelerate's file, else ``num_processes``. An unreadable file is ignored."""
    path, here = options.distributed.accelerate_config, options.distributed.num_processes * options.distributed.num_machines
    try:
        return AccelerateFile.read(Path(path)).processes if path else here
    except UnreadableAccelerateConfig:
        return here


def machine_count(options: TrainingOptions) -> int:
    """The number of machines that share a run: from accelerate's file, else ``num_machines``. An unreadable file is ignored."""
    path, here = options.distributed.accelerate_config, options.distributed.num_machines
    try:
        return AccelerateFile.read(Path(path)).machines.count if path else here
    except UnreadableAccelerateConfig:
        return here


def _from_file(path: Path, engine: list[str], extra: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command for an accelerate file, which wins over ``num_processes``."""
    file = AccelerateFile.read(path)
    if file.use_cpu and file.processes > 1:
        # `accelerate launch` with use_cpu starts one process whatever it is asked for.
        per_machine, rest = divmod(file.processes, max(1, file.machines.count))
        if rest:
            raise UnreadableAccelerateConfig(f"{file.processes} processes cannot be spread evenly over {file.machines.count} machines")
        return [*_torchrun(per_machine, file.machines), *engine], extra | {"ACCELERATE_USE_CPU": "true"}
    if file.use_cpu:
        return [sys.executable, *engine], extra | {"ACCELERATE_USE_CPU": "true"}
    return [*ACCELERATE, "--config_file", str(path), *engine], extra


def _accelerate(processes: int, machines: Machines) -> list[str]:
    """``processes``: of all machines."""
    command = [*ACCELERATE, "--num_processes", str(processes), "--multi_gpu", "--num_machines", str(machines.count)]
    if machines.count > 1:
        command += ["--machine_rank", str(machines.rank)]
        command += ["--main_process_ip", machines.main_ip, "--main_process_port", str(machines.main_port)]
    return [*command, "--mixed_precision", "no", "--dynamo_backend", "no"]


def _torchrun(processes: int, machines: Machines) -> list[str]:
    """``processes``: of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    if machines.count <= 1:
        return [*command, "--standalone", "--nproc_per_node", str(processes)]
    place = {"nnodes": machines.count, "node_rank": machines.rank, "master_addr": machines.main_ip, "master_port": machines.main_port}
    return [*command, "--nproc_per_node", str(processes), *(text for name, value in place.items() for text in (f"--{name}", str(value)))]

"""The command line of an engine: one process, several CPU ranks with torchrun, or accelerate for GPUs and several hosts."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import trainer_engine
from trainer_engine.config.options import TrainingOptions
from training.engine.accelerate_file import AccelerateFile, UnreadableAccelerateConfig
from training.engine.devices import gpus_of
from training.engine.machines import ONE_MACHINE, Machines
from training.engine.process import ENGINE_MODULE, passed_environment

ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")
PROJECT_ROOT = Path(trainer_engine.__file__).resolve().parents[1]
ACCELERATE_FILE = "accelerate.json"
"""The checked content of an accelerate file, in the folder of a run."""


def visible_gpus(variables: Mapping[str, str], devices: Path | None = None) -> int:
    """How many GPUs an engine would see, found without torch."""
    return len(gpus_of(variables, devices).names)


def launch_command(
    run_dir: Path,
    num_processes: int = 1,
    accelerate: AccelerateFile | None = None,
    variables: Mapping[str, str] | None = None,
    machines: Machines = ONE_MACHINE,
) -> tuple[list[str], dict[str, str]]:
    """The engine's command line and the environment variables to add to it, for ``process.start``.

    ``num_processes``: those of this machine. ``accelerate`` wins over it and over ``machines``; its content must then be in
    ``ACCELERATE_FILE``. Raises UnreadableAccelerateConfig.
    """
    variables = passed_environment() if variables is None else variables
    search_path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), variables.get("PYTHONPATH", "")]))
    extra = {"PYTHONPATH": search_path, "PYTHONUNBUFFERED": "1"}
    engine = ["-m", ENGINE_MODULE, str(run_dir)]
    if accelerate:
        return _from_file(accelerate, run_dir, engine, extra)
    if num_processes <= 1 and machines.count <= 1:
        return [sys.executable, *engine], extra
    if visible_gpus(variables):
        return [*_accelerate(num_processes * machines.count, machines), *engine], extra
    return [*_torchrun(num_processes, machines), *engine], extra | {"ACCELERATE_USE_CPU": "true"}


def process_count(options: TrainingOptions) -> int:
    """The number of processes that share a run: from accelerate's file, else ``num_processes``. An unreadable file is ignored."""
    path, here = options.distributed.accelerate_config, options.distributed.num_processes * options.distributed.num_machines
    try:
        file = AccelerateFile.of(path)
        return file.processes if file else here
    except UnreadableAccelerateConfig:
        return here


def _from_file(file: AccelerateFile, run_dir: Path, engine: list[str], extra: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command for an accelerate file, which wins over ``num_processes``."""
    if file.use_cpu and file.processes > 1:
        # `accelerate launch` with use_cpu starts one process whatever it is asked for.
        per_machine, rest = divmod(file.processes, max(1, file.machines.count))
        if rest:
            raise UnreadableAccelerateConfig(f"{file.processes} processes cannot be spread evenly over {file.machines.count} machines")
        return [*_torchrun(per_machine, file.machines), *engine], extra | {"ACCELERATE_USE_CPU": "true"}
    if file.use_cpu:
        return [sys.executable, *engine], extra | {"ACCELERATE_USE_CPU": "true"}
    return [*ACCELERATE, "--config_file", str(run_dir / ACCELERATE_FILE), *engine], extra


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

"""The command line of an engine: one process, several CPU ranks with torchrun, or accelerate for GPUs and several hosts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import trainer_engine
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.files import read_small_text
from training.engine.process import ENGINE_MODULE, passed_environment

BROKEN_YAML = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""The exceptions that PyYAML raises for invalid files: it builds values of unusual tags without checks."""
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch")
PROJECT_ROOT = Path(trainer_engine.__file__).resolve().parents[1]
LARGEST_CONFIG_BYTES = 64 << 10
LARGEST_NUMBER = 65_535
"""The limit for processes, machines and ports."""
HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]{0,252}")


class UnreadableAccelerateConfig(ValueError):
    """The file of ``accelerate_config`` is not a valid accelerate configuration; the message says why."""


@dataclass(frozen=True)
class AccelerateFile:
    """The part of an accelerate configuration that decides the command line; accelerate reads the rest itself."""

    use_cpu: bool
    processes: int
    machines: int
    machine_rank: int
    main_ip: str
    main_port: int

    @classmethod
    def read(cls, path: Path) -> AccelerateFile:
        """Raises UnreadableAccelerateConfig."""
        document = _document(path)
        if not isinstance(document, dict):
            raise UnreadableAccelerateConfig(f"{path} holds no settings")
        return cls(
            use_cpu=document.get("use_cpu") is True,
            processes=_whole(document, "num_processes", 1, path),
            machines=_whole(document, "num_machines", 1, path),
            machine_rank=_whole(document, "machine_rank", 0, path),
            main_ip=_host(document, path),
            main_port=_whole(document, "main_process_port", 29500, path),
        )


class _PlainLoader(yaml.SafeLoader):
    """Refuses anchors and aliases, with which a few hundred bytes can expand to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not read", event.start_mark)
        return super().compose_node(parent, index)


def _document(path: Path) -> Any:
    """The value in a YAML file. Error messages quote nothing from the file, because it may be any file of the user."""
    try:
        return yaml.load(read_small_text(path, LARGEST_CONFIG_BYTES), Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise UnreadableAccelerateConfig(f"{path} cannot be read: {error.strerror or error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UnreadableAccelerateConfig(f"{path} is not a plain YAML file: its text cannot be read{place}") from None
    except BROKEN_YAML:
        raise UnreadableAccelerateConfig(f"{path} is not a plain YAML file: its text cannot be read") from None


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
    run_dir: Path, num_processes: int = 1, accelerate_config: str | None = None, variables: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The engine's command line and the environment variables to add to it, for ``process.start``.

    ``accelerate_config`` wins over ``num_processes``. Raises UnreadableAccelerateConfig.
    """
    variables = passed_environment() if variables is None else variables
    search_path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), variables.get("PYTHONPATH", "")]))
    extra = {"PYTHONPATH": search_path, "PYTHONUNBUFFERED": "1"}
    engine = ["-m", ENGINE_MODULE, str(run_dir)]
    if accelerate_config:
        return _from_file(Path(accelerate_config), engine, extra)
    if num_processes <= 1:
        return [sys.executable, *engine], extra
    if visible_gpus(variables):
        flags = ["--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        return [*ACCELERATE, "--num_processes", str(num_processes), *flags, *engine], extra
    return [*_torchrun(num_processes), *engine], extra | {"ACCELERATE_USE_CPU": "true"}


def process_count(options: TrainingOptions) -> int:
    """The number of processes that share a run: from accelerate's file, else ``num_processes``. An unreadable file is ignored."""
    path = options.distributed.accelerate_config
    try:
        return AccelerateFile.read(Path(path)).processes if path else options.distributed.num_processes
    except UnreadableAccelerateConfig:
        return options.distributed.num_processes


def _from_file(path: Path, engine: list[str], extra: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command for an accelerate file, which wins over ``num_processes``."""
    file = AccelerateFile.read(path)
    if file.use_cpu and file.processes > 1:
        # `accelerate launch` with use_cpu starts one process whatever it is asked for.
        return [*_torchrun(file.processes, file), *engine], extra | {"ACCELERATE_USE_CPU": "true"}
    if file.use_cpu:
        return [sys.executable, *engine], extra | {"ACCELERATE_USE_CPU": "true"}
    return [*ACCELERATE, "--config_file", str(path), *engine], extra


def _torchrun(processes: int, file: AccelerateFile | None = None) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run"]
    if file is None or file.machines <= 1:
        return [*command, "--standalone", "--nproc_per_node", str(processes)]
    if processes % file.machines:
        raise UnreadableAccelerateConfig(f"{processes} processes cannot be spread evenly over {file.machines} machines")
    hosts = [
        "--nnodes",
        str(file.machines),
        "--node_rank",
        str(file.machine_rank),
        "--master_addr",
        file.main_ip,
        "--master_port",
        str(file.main_port),
    ]
    return [*command, "--nproc_per_node", str(processes // file.machines), *hosts]

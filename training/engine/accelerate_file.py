"""Reads the configuration files of Accelerate. Anybody who may steer runs may name one, so only what is known to be harmless is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer_engine.config.addresses import HOST
from trainer_engine.config.plain_yaml import UnreadableYaml, parse_yaml
from trainer_engine.contract.files import read_small_text
from training.engine.machines import Machines

LARGEST_CONFIG_BYTES = 64 << 10
LARGEST_NUMBER = 65_535
"""The limit for processes, machines and ports."""
ONE_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "compute_environment": ("LOCAL_MACHINE",),
        "distributed_type": ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP"),
        "rdzv_backend": ("static",),
        "main_training_function": ("main",),
    }
)
"""Settings with a few values. Other backends of the rendezvous let every machine join that reaches the port."""
FREE = frozenset(
    ("debug", "downcast_bf16", "dynamo_config", "enable_cpu_affinity", "fsdp_config", "gpu_ids", "machine_rank", "main_process_ip")
    + ("main_process_port", "mixed_precision", "num_machines", "num_processes", "parallelism_config", "same_network", "use_cpu")
)
REFUSED = frozenset(
    ("command_file", "commands", "deepspeed_config", "fp8_config", "ipex_config", "megatron_lm_config", "mpirun_config", "tpu_env")
    + ("tpu_name", "tpu_use_cluster", "tpu_use_sudo", "tpu_vm", "tpu_zone")
)
"""Further settings of accelerate. Several name programs, or machines that it starts programs on through ssh, MPI or a cloud."""
OFF: tuple[Any, ...] = (None, False, "", [], {}, "no", "false")


class UnreadableAccelerateConfig(ValueError):
    """The file of ``accelerate_config`` is not a valid accelerate configuration; the message says why."""


@dataclass(frozen=True)
class AccelerateFile:
    """An accelerate configuration: what decides the command line, and everything that accelerate is given."""

    use_cpu: bool
    processes: int
    """Of all machines."""
    machines: Machines
    document: Mapping[str, Any] = field(default_factory=dict)
    """Its checked content."""

    @classmethod
    def of(cls, path: str | None) -> AccelerateFile | None:
        """The file that ``accelerate_config`` names. Raises UnreadableAccelerateConfig."""
        return cls.read(Path(path)) if path else None

    @classmethod
    def read(cls, path: Path) -> AccelerateFile:
        """Raises UnreadableAccelerateConfig."""
        document = _document(path)
        if not isinstance(document, dict):
            raise UnreadableAccelerateConfig(f"{path} holds no settings")
        _check_keys(document, path)
        return cls(
            use_cpu=document.get("use_cpu") is True,
            processes=_whole(document, "num_processes", 1, path),
            machines=Machines(
                _whole(document, "num_machines", 1, path),
                _whole(document, "machine_rank", 0, path),
                _host(document, path),
                _whole(document, "main_process_port", 29500, path),
            ),
            document=document,
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


def _check_keys(document: Mapping[str, Any], path: Path) -> None:
    """Raises UnreadableAccelerateConfig for what accelerate would start other programs with, or look for other machines."""
    for key, value in document.items():
        if key in ONE_OF:
            if value not in (None, *ONE_OF[key]):
                raise UnreadableAccelerateConfig(f"{path}: {key} must be {' or '.join(ONE_OF[key])}")
        elif key not in FREE and value not in OFF:
            what = f"{key} is not taken: remove it" if key in REFUSED else "it has a key that accelerate does not know"
            raise UnreadableAccelerateConfig(f"{path}: {what}")

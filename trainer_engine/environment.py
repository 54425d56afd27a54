"""What the process was told by its environment. The only reader of it in the engine; libraries read their own variables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from trainer_engine.contract.secrets import VARIABLE
from trainer_engine.contract.trackers import wandb_knows_us

SEEN_BY_SCRIPTS = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
"""No tokens, no keys, no proxies: what a script needs besides is listed by the server's operator."""

ACCELERATOR_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""What the drivers of NVIDIA, of AMD, and of Windows in its Linux put there."""
PASSIVE_WAITING: Mapping[str, str] = MappingProxyType({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"})
"""The first is for GNU's OpenMP, which PyTorch's wheels bring along, the second for Intel's and LLVM's besides."""
WAITING_VARIABLES = (*PASSIVE_WAITING, "GOMP_SPINCOUNT", "KMP_LIBRARY")


@dataclass(frozen=True)
class Environment:
    """Set by whoever launched the process: nobody, torchrun or accelerate."""

    rank: int
    """Number of this process among all of the run, on every host."""
    processes: int
    use_cpu: bool
    """Compute on the CPU although there may be an accelerator."""
    wandb_knows_us: bool
    """Whether there is a login for Weights & Biases."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Option -> its whole text, for options whose text in ``job.json`` has ``***`` in it."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and saves for all."""
        return self.rank == 0


def read_environment(variables: MutableMapping[str, str] | None = None) -> Environment:
    """Raises ValueError where a number is none. The secrets are taken out: no program that the engine starts inherits them."""
    variables = os.environ if variables is None else variables
    return Environment(
        rank=int(variables.get("RANK", "0")),
        processes=int(variables.get("WORLD_SIZE", "1")),
        wandb_knows_us=wandb_knows_us(variables),
        use_cpu=_says_cpu(variables),
        secrets=json.loads(variables.pop(VARIABLE, "{}")),
    )


def wait_passively(variables: MutableMapping[str, str] | None = None, files: Collection[str] = ACCELERATOR_FILES) -> bool:
    """Let threads that wait for others sleep, where the run computes on a CPU and nobody chose how they wait; whether that was set.

    By default they spin: beside other work on the machine each barrier of a step burns the time that the last thread needs to be
    scheduled. The libraries read this once, when they are loaded, so it has to be called before PyTorch is imported.
    """
    variables = os.environ if variables is None else variables
    if any(name in variables for name in WAITING_VARIABLES) or not _computes_on_cpu(variables, files):
        return False
    variables.update(PASSIVE_WAITING)
    return True


def _computes_on_cpu(variables: Mapping[str, str], files: Collection[str]) -> bool:
    """Told from outside PyTorch, which is not loaded yet: there is no accelerator, or the run may not use it."""
    if _says_cpu(variables) or variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return True
    return sys.platform != "darwin" and not any(Path(file).exists() for file in files)


def _says_cpu(variables: Mapping[str, str]) -> bool:
    return variables.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def script_environment(listed: Collection[str] = (), variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a program that a run starts may see of this process's environment. ``listed``: names of further variables."""
    variables = os.environ if variables is None else variables
    return {name: variables[name] for name in (*SEEN_BY_SCRIPTS, *listed) if name in variables}

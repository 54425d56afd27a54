"""What the process was told by its environment. The only reader of it in the engine; libraries read their own variables."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from trainer_engine.config.addresses import PRIVATE_VARIABLE
from trainer_engine.config.destinations import has_wandb_login
from trainer_engine.config.secrets import VARIABLE

HUB_KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
KEY = re.compile(r"(?:TOKEN|KEY|SECRETS?|PASSWORD|CREDENTIALS?|JWT)$", re.IGNORECASE)
"""The end of the name of a variable that holds a key."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
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
    has_wandb_login: bool
    """Whether there is a login for Weights & Biases."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Option -> its whole text, for options whose text in ``job.json`` has ``***`` in it."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and saves for all."""
        return self.rank == 0


def read_environment(variables: MutableMapping[str, str] | None = None) -> Environment:
    """Raises ValueError where a number is none. The secrets are taken out: no program that the engine starts inherits them."""
    if variables is None:
        variables = os.environ
        _wipe(VARIABLE)
    return Environment(
        rank=int(variables.get("RANK", "0")),
        processes=int(variables.get("WORLD_SIZE", "1")),
        has_wandb_login=has_wandb_login(variables),
        use_cpu=_says_cpu(variables),
        secrets=json.loads(variables.pop(VARIABLE, "{}")),
    )


def _wipe(name: str) -> None:
    """Overwrite a variable where the system keeps what a process was started with: ``/proc/<pid>/environ`` shows that for ever.

    Python has its own copy. Does nothing where the system keeps no such block.
    """
    if not sys.platform.startswith("linux") or name not in os.environ:
        return
    getenv = ctypes.CDLL(None).getenv
    getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    place = getenv(os.fsencode(name))
    if place:
        ctypes.memset(place, ord("x"), len(ctypes.string_at(place)))


def helper_environment(*, with_network: bool = False, with_hub: bool = False) -> dict[str, str]:
    """The variables of this process for a process that helps it: no keys.

    ``with_network``: with proxies, whose addresses may hold a password. ``with_hub``: with the login of the hub.
    """
    withheld = () if with_network else PROXIES
    return {
        name: value
        for name, value in os.environ.items()
        if (with_hub and name in HUB_KEYS) or not (KEY.search(name) or name.lower() in withheld)
    }


def private_networks_are_open(variables: Mapping[str, str] | None = None) -> bool:
    """Whether uploads and downloads of a run may go to private networks, as the server's operator said."""
    variables = os.environ if variables is None else variables
    return variables.get(PRIVATE_VARIABLE, "").strip().lower() in ("1", "true")


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

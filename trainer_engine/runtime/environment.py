"""Reads the environment variables of the process. No other module of the engine reads them; libraries read their own."""

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

from trainer_engine.config.addresses import DOWNLOAD_GB, DOWNLOAD_VARIABLE, GB, PRIVATE_VARIABLE, Reach
from trainer_engine.config.destinations import has_wandb_login
from trainer_engine.config.model_comment import is_for_comments
from trainer_engine.config.secrets import VARIABLE

HUB_KEYS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
KEY = re.compile(r"(?:TOKEN|KEY|SECRETS?|PASSWORD|CREDENTIALS?|JWT)$", re.IGNORECASE)
"""Matches the end of the name of a variable that holds a secret."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
SEEN_BY_HOOKS = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
"""Variables that every hook gets: no tokens, no keys, no proxies. The server's operator lists further ones."""

ACCELERATOR_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the drivers of NVIDIA, of AMD, and of the Windows subsystem for Linux."""
PASSIVE_WAITING: Mapping[str, str] = MappingProxyType({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"})
"""GNU's OpenMP, which is in PyTorch's wheels, reads the first; Intel's and LLVM's read both."""
WAITING_VARIABLES = (*PASSIVE_WAITING, "GOMP_SPINCOUNT", "KMP_LIBRARY")


@dataclass(frozen=True)
class LaunchEnvironment:
    """What torchrun, accelerate or the server set for this process; a plain start sets nothing."""

    rank: int
    """Number of this process among all processes of the run, over all hosts; the first is 0."""
    processes: int
    use_cpu: bool
    """Compute on the CPU even if there is an accelerator."""
    has_wandb_login: bool
    """Whether a login for Weights & Biases exists."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Option -> its full text, for options whose text in ``job.json`` contains ``***``."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the journal and the checkpoints of the run."""
        return self.rank == 0


def read_environment(variables: MutableMapping[str, str] | None = None) -> LaunchEnvironment:
    """Removes the secrets from the variables, so that no process inherits them. Raises ValueError for a rank that is not a number."""
    if variables is None:
        variables = os.environ
        _wipe(VARIABLE)
    return LaunchEnvironment(
        rank=int(variables.get("RANK", "0")),
        processes=int(variables.get("WORLD_SIZE", "1")),
        has_wandb_login=has_wandb_login(variables),
        use_cpu=_says_cpu(variables),
        secrets=json.loads(variables.pop(VARIABLE, "{}")),
    )


def _wipe(name: str) -> None:
    """Overwrite a variable in the memory that ``/proc/<pid>/environ`` shows; deleting it from ``os.environ`` does not change that.

    Python keeps its own copy. Does nothing on systems other than Linux.
    """
    if not sys.platform.startswith("linux") or name not in os.environ:
        return
    getenv = ctypes.CDLL(None).getenv
    getenv.restype, getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    place = getenv(os.fsencode(name))
    if place:
        ctypes.memset(place, ord("x"), len(ctypes.string_at(place)))


def helper_environment(*, with_network: bool = False, with_hub: bool = False) -> dict[str, str]:
    """The environment of a helper process: the variables of this process without secrets.

    ``with_network`` keeps proxies, whose addresses may contain a password. ``with_hub`` keeps the login of the hub.
    """
    withheld = () if with_network else PROXIES
    return {
        name: value
        for name, value in os.environ.items()
        if (with_hub and name in HUB_KEYS) or not (KEY.search(name) or name.lower() in withheld)
    }


def private_networks_are_open(variables: Mapping[str, str] | None = None) -> bool:
    """Whether uploads and downloads of a run may go to private networks, as the server's operator has set it."""
    variables = os.environ if variables is None else variables
    return variables.get(PRIVATE_VARIABLE, "").strip().lower() in ("1", "true")


def reach_of_sources(variables: Mapping[str, str] | None = None) -> Reach:
    """Returns what the server's operator allows to the sources of datasets. The server has checked the number."""
    variables = os.environ if variables is None else variables
    largest = float(variables.get(DOWNLOAD_VARIABLE) or DOWNLOAD_GB)
    return Reach(private=private_networks_are_open(variables), largest_set_bytes=int(largest * GB))


def wait_passively(variables: MutableMapping[str, str] | None = None, files: Collection[str] = ACCELERATOR_FILES) -> bool:
    """Make waiting OpenMP threads sleep instead of spin, if the run computes on a CPU and no variable sets it. Returns whether it did.

    On a machine with other work, spinning threads take the time that the last thread of a barrier needs to be scheduled. OpenMP reads
    the variables once, when it is loaded: call this before PyTorch is imported.
    """
    variables = os.environ if variables is None else variables
    if any(name in variables for name in WAITING_VARIABLES) or not _computes_on_cpu(variables, files):
        return False
    variables.update(PASSIVE_WAITING)
    return True


def _computes_on_cpu(variables: Mapping[str, str], files: Collection[str]) -> bool:
    """Whether there is no accelerator or the run may not use it. PyTorch, which would know, is not loaded yet."""
    if _says_cpu(variables) or variables.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return True
    return sys.platform != "darwin" and not any(Path(file).exists() for file in files)


def _says_cpu(variables: Mapping[str, str]) -> bool:
    return variables.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")


def comment_variables(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of this process that ``modelspec_comment`` may contain."""
    variables = os.environ if variables is None else variables
    return {name: value for name, value in variables.items() if is_for_comments(name)}


def hook_environment(listed: Collection[str] = (), variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of this process that a hook gets. ``listed`` names further ones."""
    variables = os.environ if variables is None else variables
    return {name: variables[name] for name in (*SEEN_BY_HOOKS, *listed) if name in variables}

"""Parses the process environment. The web processes read it nowhere else.

==============================  =============================================================================
``SIMPLETUNER_HOME``            folder with ``config/`` and ``state/``; default: the working directory
``SIMPLETUNER_SLOTS``           how many runs may train at a time; default: 1
``SIMPLETUNER_ALLOWED_HOSTS``   further values of ``Host`` that are served, separated by commas
``SIMPLETUNER_TRUSTED_PROXIES``  addresses and networks whose ``X-Forwarded-For`` is believed when wrong tokens are counted
``SIMPLETUNER_TOKEN``           the token of ``simpletuner server``: the same as ``--token``, and no other process sees it
``SIMPLETUNER_NEEDS_TOKEN``     ``1``: requests need the token that ``state/`` holds, hooks are off, and only listed roots are open
``SIMPLETUNER_SECRET_KEY``      replaces the key in ``state/secret_key``
``SIMPLETUNER_LOG_LEVEL``       default: ``INFO``
``SIMPLETUNER_PRIVATE_WEBHOOKS``  ``1`` lets webhooks be posted to private networks
``SIMPLETUNER_DOWNLOAD_GB``     a run downloads at most so much for one dataset of addresses; default: 500, 0: no limit
``SIMPLETUNER_UPLOAD_MB``       the largest image or clip that can be uploaded, in MB; default: 64. A request holds four of them
``SIMPLETUNER_MACHINES``        hosts, addresses and networks that a run of several machines may name, separated by commas
``SIMPLETUNER_ROOTS``           further folders for user paths, separated by colons: the same as ``--root``
``SIMPLETUNER_HOOKS``           further folders of hooks, separated by colons, next to ``state/hooks``
``SIMPLETUNER_HOOKS_ENV``       variables that hooks get, separated by commas: ``REPLICATE_API_TOKEN``
``SIMPLETUNER_ALLOW_SCRIPTS``   ``1`` lets runs start every program: the same as ``--allow-scripts``
``SIMPLETUNER_THIN_EVENTS_DAYS``  progress of runs that ended so many days ago is thinned; default: 30, 0: never
``SIMPLETUNER_KEEP_RUNS_DAYS``  folders of runs that ended so many days ago are removed; default: 0, never
``SIMPLETUNER_KEEP_RUNS_GB``    the oldest of them are removed above this size of ``state/runs``; default: 0, no limit
``SIMPLETUNER_KEEP_CACHE_DAYS``  cache entries that no run used for so many days are removed; default: 0, never
``SIMPLETUNER_KEEP_CACHE_GB``   the longest unused ones are removed above this size of all caches; default: 0, no limit
``DATABASE_URL``                a database instead of ``state/simpletuner.sqlite3``: ``postgres://…``
``REDIS_URL``                   broker of the task queue if several machines share one
==============================  =============================================================================
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simpletuner_site.security.requests import Network
from trainer_engine.config.addresses import DOWNLOAD_GB, DOWNLOAD_VARIABLE, GB
from training.engine.machines import MACHINES_VARIABLE, wrong_machines

MOST_SLOTS = 64
MOST_UPLOAD_MB = 16_000
NEEDS_TOKEN = "SIMPLETUNER_NEEDS_TOKEN"
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
PRUNE = ("thin_events_days", "keep_runs_days", "keep_runs_gb", "keep_cache_days", "keep_cache_gb")
MOST_AMOUNT = 1_000_000
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class BadEnvironment(ValueError):
    """A variable has an invalid value; the message names it."""


@dataclass(frozen=True)
class ProcessEnvironment:
    """The variables above, parsed."""

    home: Path
    slots: int = 1
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    """Those that are believed who their clients are."""
    secret_key: str = ""
    log_level: str = "INFO"
    database_url: str = ""
    redis_url: str = ""
    private_webhooks: bool = False
    download_bytes: int = int(DOWNLOAD_GB * GB)
    """Limit of one dataset of addresses; 0: none."""
    upload_bytes: int = 64_000_000
    """Limit of one uploaded file."""
    machines: tuple[str, ...] = ()
    """Those that may be machine 0 of a run."""
    roots: tuple[Path, ...] = ()
    hooks: tuple[Path, ...] = ()
    hooks_env: tuple[str, ...] = ()
    allow_scripts: bool = False
    needs_token: bool = False
    """Whether other machines may reach the server."""
    prune: tuple[tuple[str, float], ...] = ()
    """Name of a field of ``PrunePolicy`` -> its value, for those that are set."""
    hub_folders: tuple[Path, ...] = ()
    """The folders in which the Hugging Face libraries keep tokens and models."""


def read_environment(variables: Mapping[str, str] | None = None) -> ProcessEnvironment:
    """Raises BadEnvironment for an invalid variable."""
    variables = os.environ if variables is None else variables
    hosts = variables.get("SIMPLETUNER_ALLOWED_HOSTS", "")
    return ProcessEnvironment(
        home=_expanded("SIMPLETUNER_HOME", variables.get("SIMPLETUNER_HOME") or str(Path.cwd())).absolute(),
        slots=_slots(variables.get("SIMPLETUNER_SLOTS") or "1"),
        allowed_hosts=tuple(host.strip().lower() for host in hosts.split(",") if host.strip()),
        trusted_proxies=_networks(variables, "SIMPLETUNER_TRUSTED_PROXIES"),
        secret_key=variables.get("SIMPLETUNER_SECRET_KEY", ""),
        log_level=_log_level(variables.get("SIMPLETUNER_LOG_LEVEL") or "INFO"),
        database_url=variables.get("DATABASE_URL", ""),
        redis_url=variables.get("REDIS_URL", ""),
        private_webhooks=_switch(variables, "SIMPLETUNER_PRIVATE_WEBHOOKS"),
        download_bytes=int(_amount({DOWNLOAD_VARIABLE: str(DOWNLOAD_GB), **variables}, DOWNLOAD_VARIABLE) * GB),
        upload_bytes=_upload_bytes(variables.get("SIMPLETUNER_UPLOAD_MB") or "64"),
        machines=_machines(variables.get(MACHINES_VARIABLE, "")),
        roots=_folders(variables, "SIMPLETUNER_ROOTS"),
        hooks=_folders(variables, "SIMPLETUNER_HOOKS"),
        hooks_env=_names(variables.get("SIMPLETUNER_HOOKS_ENV", "")),
        allow_scripts=_switch(variables, "SIMPLETUNER_ALLOW_SCRIPTS"),
        needs_token=_switch(variables, NEEDS_TOKEN),
        prune=tuple(
            (name, _amount(variables, f"SIMPLETUNER_{name.upper()}")) for name in PRUNE if f"SIMPLETUNER_{name.upper()}" in variables
        ),
        hub_folders=_hub_folders(variables),
    )


@dataclass(frozen=True)
class CommandEnvironment:
    """What the commands read that talk to a server."""

    home: Path
    names_home: bool = False
    """Whether ``SIMPLETUNER_HOME`` is set; otherwise the home is the folder that one is in."""
    url: str = ""
    """``SIMPLETUNER_URL``: a server elsewhere."""
    token: str = ""
    """``SIMPLETUNER_TOKEN``: that server's token."""
    editor: str = "vi"
    """``VISUAL`` or ``EDITOR``."""
    hub_is_offline: bool = False
    has_database_url: bool = False


def read_command_environment(variables: Mapping[str, str] | None = None) -> CommandEnvironment:
    """Raises BadEnvironment only for a home that cannot be found; ``simpletuner doctor`` reports the other variables."""
    variables = os.environ if variables is None else variables
    return CommandEnvironment(
        home=_expanded("SIMPLETUNER_HOME", variables.get("SIMPLETUNER_HOME") or str(Path.cwd())).absolute(),
        names_home=bool(variables.get("SIMPLETUNER_HOME")),
        url=variables.get("SIMPLETUNER_URL", ""),
        token=variables.get("SIMPLETUNER_TOKEN", ""),
        editor=variables.get("VISUAL") or variables.get("EDITOR") or "vi",
        hub_is_offline=variables.get("HF_HUB_OFFLINE") == "1",
        has_database_url=bool(variables.get("DATABASE_URL")),
    )


def _folders(variables: Mapping[str, str], name: str) -> tuple[Path, ...]:
    found = tuple(_expanded(name, part.strip()) for part in variables.get(name, "").split(os.pathsep) if part.strip())
    for folder in found:
        if not folder.is_absolute() or Path(os.path.realpath(folder)) == Path(folder.anchor):
            raise BadEnvironment(f"{name} lists {folder}; every folder must be absolute, and not the whole disk")
    return found


def _expanded(name: str, text: str) -> Path:
    """A path whose leading ``~`` or ``~user`` is a home folder. Raises BadEnvironment for a user who has none."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise BadEnvironment(f"{name} lists {text}; this machine knows no home folder of that user") from None


def _hub_folders(variables: Mapping[str, str]) -> tuple[Path, ...]:
    usual = Path(variables.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    named = (variables.get("HF_HOME") or usual, variables.get("HF_HUB_CACHE"))
    return tuple(_expanded("HF_HOME, HF_HUB_CACHE or XDG_CACHE_HOME", str(folder)) for folder in named if folder)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _networks(variables: Mapping[str, str], name: str) -> tuple[Network, ...]:
    try:
        return tuple(ipaddress.ip_network(part) for part in _parts(variables.get(name, "")))
    except ValueError as error:
        raise BadEnvironment(f"{name}: {error}; it must be addresses or networks such as 127.0.0.1,10.0.0.0/24") from None


def _machines(text: str) -> tuple[str, ...]:
    found = _parts(text)
    for one in wrong_machines(found):
        raise BadEnvironment(f"{MACHINES_VARIABLE} lists {one!r}; it must be names, addresses or networks such as 10.0.0.0/24")
    return found


def _names(text: str) -> tuple[str, ...]:
    found = _parts(text)
    for name in found:
        if not VARIABLE_NAME.match(name):
            raise BadEnvironment(f"SIMPLETUNER_HOOKS_ENV lists {name!r}; it must be names of variables, separated by commas")
    return found


def _switch(variables: Mapping[str, str], name: str) -> bool:
    text = variables.get(name, "").strip().lower()
    if text not in ("", "0", "1", "true", "false"):
        raise BadEnvironment(f"{name} is {text!r}; it must be 1 or 0")
    return text in ("1", "true")


def _amount(variables: Mapping[str, str], name: str) -> float:
    text = variables[name].strip() or "0"
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MOST_AMOUNT:
        raise BadEnvironment(f"{name} is {text[:40]!r}; it must be a number from 0 to {MOST_AMOUNT}")
    return number


def _slots(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 5 and 1 <= int(text) <= MOST_SLOTS):
        raise BadEnvironment(f"SIMPLETUNER_SLOTS is {text[:40]!r}; it must be a whole number from 1 to {MOST_SLOTS}")
    return int(text)


def _upload_bytes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 1 <= int(text) <= MOST_UPLOAD_MB):
        raise BadEnvironment(f"SIMPLETUNER_UPLOAD_MB is {text[:40]!r}; it must be a whole number from 1 to {MOST_UPLOAD_MB}")
    return int(text) * 1_000_000


def _log_level(text: str) -> str:
    if text.upper() not in LOG_LEVELS:
        raise BadEnvironment(f"SIMPLETUNER_LOG_LEVEL is {text!r}; it must be one of {', '.join(LOG_LEVELS)}")
    return text.upper()

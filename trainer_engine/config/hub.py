"""The settings of the Hugging Face hub, for code that asks it without its library, and why it does not give a dataset."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_small_text

DEFAULT_ENDPOINT = "https://huggingface.co"
TRUE = ("1", "on", "yes", "true")
LOGIN = "accept its conditions on the hub and log in with `hf auth login`, or set HF_TOKEN"
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?\Z", re.ASCII)


@dataclass(frozen=True)
class HubSettings:
    """The settings of the Hugging Face hub from the environment."""

    cache: Path
    endpoint: str
    token: str
    is_offline: bool

    @classmethod
    def current(cls) -> HubSettings:
        """Returns the settings of this process, which the hub's library reads from the same variables."""
        return cls.of(os.environ)

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> HubSettings:
        root = Path(
            variables.get("HF_HOME") or Path(variables.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
        ).expanduser()
        cache = Path(variables.get("HF_HUB_CACHE") or root / "hub").expanduser()
        token_file = Path(variables.get("HF_TOKEN_PATH") or root / "token").expanduser()
        try:
            token = variables.get("HF_TOKEN") or read_small_text(token_file).strip()
        except OSError:
            token = ""
        offline = variables.get("HF_HUB_OFFLINE", "").lower() in TRUE or variables.get("TRANSFORMERS_OFFLINE", "").lower() in TRUE
        return cls(cache, (variables.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"), token, offline)


def is_repository(text: str) -> bool:
    """Whether the text can be a repository id: ``name`` or ``owner/name``."""
    return REPOSITORY.match(text) is not None and ".." not in text and "--" not in text


def dataset_gated(option: str, repository: str) -> Problem:
    message = f"Access to the dataset {repository} must be requested on the hub."
    return Problem.error(option, "dataset_gated", message, got=repository, hint=LOGIN)


def dataset_not_found(option: str, repository: str) -> Problem:
    message = f"The hub has no dataset {repository}, or this account may not see it."
    hint = "check the spelling; for a private dataset set HF_TOKEN; a folder needs a path that exists"
    return Problem.error(option, "dataset_not_found", message, got=repository, hint=hint)


def dataset_no_revision(option: str, repository: str, revision: str | None) -> Problem:
    """``option`` names the field of the dataset; the problem is of the field ``revision`` beside it."""
    field = f"{option.rpartition('.')[0]}.revision"
    message = f"The dataset {repository} has no revision {revision}."
    return Problem.error(field, "revision_not_found", message, got=revision, expected="a branch, tag or commit")


def dataset_not_cached(option: str, repository: str, reason: str) -> Problem:
    message = f"The dataset {repository} cannot be read, and the hub is switched off (HF_HUB_OFFLINE): {reason}."
    hint = "download it first, or give the path of a local folder"
    return Problem.error(option, "dataset_not_cached", message, got=repository, hint=hint)


def dataset_not_reached(option: str, repository: str, reason: str) -> Problem:
    message = f"The dataset {repository} is not in the cache of the hub, and the hub could not be reached ({reason})."
    hint = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give the path of a local copy"
    return Problem.error(option, "hub_not_reached", message, got=repository, hint=hint)

"""The settings of the Hugging Face hub, for code that asks it without its library, and finds its cache without asking."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.contract.files import read_small_text

DEFAULT_ENDPOINT = "https://huggingface.co"
TRUE = ("1", "on", "yes", "true")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?\Z", re.ASCII)


@dataclass(frozen=True)
class HubSettings:
    """The settings of the Hugging Face hub from the environment."""

    cache: Path
    endpoint: str
    token: str
    is_offline: bool

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

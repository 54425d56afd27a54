"""Which trackers a run reports to, and whether Weights & Biases will know whose run it is. No torch, no tracker is imported."""

from __future__ import annotations

import netrc
from collections.abc import Mapping
from pathlib import Path

KNOWN = ("tensorboard", "wandb")
LATER = ("simpletuner", "swanlab", "comet_ml", "custom-tracker", "all")
NOBODY = ("", "none", "null")
WANDB_HOST = "api.wandb.ai"


def parse_trackers(text: str) -> tuple[str, ...]:
    """The trackers of ``report_to``, each once. ValueError names the first word that is none."""
    words = [word.strip().lower() for word in text.split(",")]
    found = [word for word in words if word not in NOBODY]
    for word in found:
        if word in LATER:
            raise ValueError(f"{word} is known, not available yet")
        if word not in KNOWN:
            raise ValueError(f"there is no tracker {word!r}")
    return tuple(dict.fromkeys(found))


def wandb_knows_us(variables: Mapping[str, str]) -> bool:
    """Whether an API key is set, or ``wandb login`` has left one in the netrc file."""
    if variables.get("WANDB_API_KEY"):
        return True
    path = Path(variables.get("NETRC") or Path(variables.get("HOME", "~")).expanduser() / ".netrc")
    try:
        return netrc.netrc(str(path)).authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False

"""Keeps account of what a translation leaves out and of what is wrong with its document, without secrets and control characters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer_engine.config.prompt_library import CREDENTIAL
from trainer_engine.contract.errors import Problem

HIDDEN = "***"
SECRET_REASON = "secrets are not copied; log in on this machine, or set HF_TOKEN or the key of the tracker in its environment"
LONGEST_SHOWN = 160
MOST_LEFT_OUT = 500
"""Limit of entries in a report."""


@dataclass(frozen=True)
class LeftOut:
    """One value of a foreign document that the environment does not have."""

    name: str
    """Path in the document: ``config.process[0].train.lr``."""
    value: str
    """As it stands there, shortened; ``***`` for a secret."""
    reason: str

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "value": self.value, "reason": self.reason}


def is_secret(name: str) -> bool:
    """Whether the last part of a name is one that credentials have."""
    return bool(CREDENTIAL.search(name.rsplit(".", 1)[-1].lower()))


def shown(name: str, value: Any) -> str:
    """The value as text, without the credentials in it."""
    text = json.dumps(_without_secrets(name, value), ensure_ascii=False, default=str) if not isinstance(value, str) else value
    return HIDDEN if is_secret(name) else printable(text)


def printable(text: str) -> str:
    """A text of a foreign document for a terminal or a page: shortened, and without control characters."""
    text = "".join(character if character.isprintable() else " " for character in text[: 2 * LONGEST_SHOWN])
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


def _without_secrets(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_secrets(str(key), part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_secrets(name, part) for part in value]
    return HIDDEN if value and is_secret(name) else value


@dataclass
class Ledger:
    """What a translation leaves out, and what is wrong with its document."""

    left_out: list[LeftOut] = field(default_factory=list)
    refused: list[LeftOut] = field(default_factory=list)
    """What the checks of this trainer refuse; it comes first in a report."""
    problems: list[Problem] = field(default_factory=list)

    def leave(self, name: str, value: Any, reason: str) -> None:
        """Records a value that is not taken; a credential never shows its value."""
        self._add(self.left_out, name, value, reason)

    def refuse(self, name: str, value: Any, reason: str) -> None:
        """Records a value that was translated and then refused."""
        self._add(self.refused, name, value, reason)

    @property
    def report(self) -> tuple[LeftOut, ...]:
        return (*self.refused, *self.left_out)

    @staticmethod
    def _add(entries: list[LeftOut], name: str, value: Any, reason: str) -> None:
        if len(entries) < MOST_LEFT_OUT:
            entries.append(LeftOut(printable(name), shown(name, value), SECRET_REASON if is_secret(name) else reason))

    def wrong(self, name: str, value: Any, expected: str) -> None:
        """Records a value of a wrong type."""
        self.problems.append(
            Problem.error(printable(name), "wrong_type", f"{printable(name)} is not {expected}.", got=shown(name, value), expected=expected)
        )

"""The changes that the start of a run makes to its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from environments.files.config_files import without_marks
from environments.models import Environment
from trainer_engine.config.components import CONFIG, NETWORKS, T5, VAE
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import canonical_name
from trainer_engine.config.options.secrets import hide_options, secrets_of
from trainer_engine.config.parse import normalise

CONSENT = ("i_know_what_i_am_doing",)
"""Options that count for one start and are not stored."""
FAMILY, FLAVOUR, BASE = "model_family", "model_flavour", "pretrained_model_name_or_path"
OF_ONE_FAMILY = (FLAVOUR, BASE, "revision", "variant", CONFIG, VAE, T5, *(option for pair in NETWORKS.values() for option in pair))
"""Options that are not valid for another family."""


@dataclass(frozen=True)
class Changed:
    """One option that a start wrote into an environment. Values are as stored, with secrets hidden; None if not set."""

    option: str
    before: Any
    after: Any

    def as_dict(self) -> dict[str, Any]:
        return {"option": self.option, "from": self.before, "to": self.after}


@dataclass(frozen=True)
class RunRecord:
    """The environment that the configuration of a run was written to, and what changed there."""

    environment: Environment
    changed: tuple[Changed, ...] = ()
    revision: int | None = None
    """The revision with the environment before the change; None if nothing changed."""


def changes(before: Mapping[str, Any], secrets: Mapping[str, str], after: Mapping[str, Any]) -> tuple[Changed, ...]:
    """Options whose stored value differs, in order of their names. ``secrets`` holds those of ``before``."""
    stored, kept = hide_options(after), secrets_of(after)
    names = {*before, *stored, *secrets, *kept}
    differing = sorted(name for name in names if before.get(name) != stored.get(name) or secrets.get(name) != kept.get(name))
    return tuple(Changed(name, before.get(name), stored.get(name)) for name in differing)


def to_store(values: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration as its environment stores it, without consent given for one start."""
    kept = {name: value for name, value in values.items() if name not in CONSENT}
    return kept | {name: stored[name] for name in CONSENT if name in stored}


def is_one_off(stored: Mapping[str, Any], submitted: Mapping[str, Any]) -> bool:
    """Whether a form asks for another family, flavour or base model than its environment."""
    before, _ = normalise(without_marks(stored))
    sent, _ = normalise(without_marks(submitted))
    return find_spec(str(before.get(FAMILY, ""))) is not None and _base(before) != _base({**before, **sent})


def _base(values: Mapping[str, Any]) -> tuple[str, str, str]:
    """Family, flavour and base model, with defaults filled in."""
    family, flavour = str(values.get(FAMILY, "")), str(values.get(FLAVOUR) or "")
    spec = find_spec(family)
    if spec is None:
        return family, flavour, str(values.get(BASE) or "")
    flavour = flavour or spec.default_flavour
    base = str(values.get(BASE) or spec.flavours.get(flavour, "")).rstrip("/")
    return spec.name, flavour, base


def laid_under(stored: Mapping[str, Any], submitted: Mapping[str, Any]) -> dict[str, Any]:
    """The environment's values under a form. If the form changes the family, options of the old model are left out."""
    before, _ = normalise(without_marks(stored))
    sent, _ = normalise(without_marks(submitted))
    if FAMILY not in sent or _base(before)[0] == _base(sent)[0]:
        return dict(stored)
    return {name: value for name, value in stored.items() if canonical_name(name) not in OF_ONE_FAMILY}

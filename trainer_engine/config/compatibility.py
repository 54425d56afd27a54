"""Reports what of any configuration of the format this trainer accepts, and exactly what stands in the way of the rest.

Nothing is read but the values: paths and repositories may be those of another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.datasets.refused import reason_of_field
from trainer_engine.config.families import find_spec
from trainer_engine.config.options.refused import Reason, refusal_of
from trainer_engine.config.options.registry import canonical_name, not_available
from trainer_engine.config.parse import check_options, normalise
from trainer_engine.contract.errors import Level, Problem

FAMILY, FLAVOUR = "model_family", "model_flavour"
SETTING = "setting"
"""The reason of an obstacle that the user can remove: a wrong, missing or contradictory value."""
UNKNOWN = "unknown"
"""The reason of a name that the format does not have."""
RANKS = (*(reason.value for reason in (Reason.FAMILY, Reason.RESEARCH, Reason.NOT_OFFERED, Reason.LATER, Reason.UNSAFE)), UNKNOWN, SETTING)
"""Reasons, with those first that a change of the configuration helps least."""


@dataclass(frozen=True)
class Obstacle:
    """One thing that keeps a configuration from starting."""

    reason: str
    """One of ``RANKS``."""
    problem: Problem

    def as_dict(self) -> dict[str, str]:
        return {"reason": self.reason, **self.problem.as_dict()}


@dataclass(frozen=True)
class Compatibility:
    """What this trainer says about one configuration and its datasets."""

    family: str
    """The name of the family as it is implemented, else as it was given; empty without one."""
    has_family: bool
    """Whether the family is implemented."""
    options: int
    """Number of options in the configuration."""
    datasets: int | None
    """Number of datasets in the file; None if no file was given."""
    obstacles: tuple[Obstacle, ...]
    """Ranked by reason. Options and fields that belong to a missing family alone are part of the obstacle of the family."""
    notes: tuple[Problem, ...]
    """Warnings and notes about what is accepted."""

    @property
    def starts(self) -> bool:
        """Whether nothing in the configuration itself stands in the way. Files and weights are checked by ``validate``."""
        return not self.obstacles

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape of the report."""
        return {
            "starts": self.starts,
            "family": {"name": self.family, "available": self.has_family},
            "options": self.options,
            "datasets": self.datasets,
            "obstacles": [obstacle.as_dict() for obstacle in self.obstacles],
            "notes": [note.as_dict() for note in self.notes],
        }


def check_compatibility(config: Mapping[str, Any], datasets: object = None) -> Compatibility:
    """Report on the options of a configuration and on the content of its datasets file, if that is given."""
    given = {canonical_name(str(name)): value for name, value in config.items()}
    name = str(given.get(FAMILY) or "")
    spec = find_spec(name)
    options, problems = check_options(config)
    if datasets is not None:
        problems += parse_dataloader(datasets, options or _usable(given, problems))[1]
    obstacles = [Obstacle(reason_of(problem), problem) for problem in problems if problem.level is Level.ERROR]
    if spec is None:
        obstacles = _folded(obstacles)
    obstacles.sort(key=lambda obstacle: RANKS.index(obstacle.reason))
    return Compatibility(
        family=spec.name if spec else name[:100],
        has_family=spec is not None,
        options=len(given),
        datasets=len(datasets) if isinstance(datasets, list) else None if datasets is None else 0,
        obstacles=tuple(obstacles),
        notes=tuple(problem for problem in problems if problem.level is not Level.ERROR),
    )


def reason_of(problem: Problem) -> str:
    """The reason of an error of ``check_options`` or ``parse_dataloader``."""
    if problem.code in ("unknown_option", "unknown_field"):
        return UNKNOWN
    if problem.option == FAMILY and problem.code != "missing":
        return Reason.FAMILY.value
    if problem.code != "not_available":
        return SETTING
    if problem.option == FLAVOUR:
        return Reason.FAMILY.value
    if problem.option in not_available():
        return refusal_of(problem.option).reason.value
    return reason_of_field(problem.option, problem.got).value if "." in problem.option else Reason.LATER.value


def _usable(given: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The options without those that have an error, for the defaults that datasets take from them."""
    wrong = {problem.option for problem in problems if problem.level is Level.ERROR}
    return {name: value for name, value in normalise(given)[0].items() if name not in wrong - {FAMILY}}


def _folded(obstacles: list[Obstacle]) -> list[Obstacle]:
    """Leaves out what other families have for themselves, options and fields of datasets: it comes with the family."""
    return [one for one in obstacles if one.reason != Reason.FAMILY.value or one.problem.option == FAMILY]

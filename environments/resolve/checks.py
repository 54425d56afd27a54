"""Checks of a configuration before it is stored: errors, and warnings about what a start would need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from environments.files.config_files import without_marks
from environments.paths import Home, resolve
from environments.resolve.hooks import resolve_scripts
from environments.resolve.path_options import ADAPTERS, LOCAL, WEIGHTS, is_repository, resolve_weights
from trainer_engine.config.adapters.validation_adapter import hub_file
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import REGISTRY, canonical_name
from trainer_engine.config.parse import check_options, normalise
from trainer_engine.contract.errors import Level, Problem, limited

FIXED_BY_FORM = frozenset({"no_length", "two_lengths"})
"""Problems with which an environment may be stored, because the form of a start can fix them."""


@dataclass(frozen=True)
class CheckedConfig:
    """A configuration with typed values by canonical name."""

    values: dict[str, Any]
    errors: list[Problem]
    """Problems that keep it from being stored."""
    warnings: list[str]
    """Problems that keep it from being started."""
    suggestions: list[str]

    @property
    def advice(self) -> dict[str, list[str]]:
        return {"warnings": self.warnings, "suggestions": self.suggestions}


def check_config(config: Mapping[str, Any], home: Home) -> CheckedConfig:
    """Parse and check the values: one by one, together, and with the family. Touches nothing."""
    given = without_marks(config)
    named = {canonical_name(key) for key in given}
    values, _ = normalise(given)
    spec = find_spec(str(values.get("model_family", "")))
    if spec is not None:
        values["model_family"] = spec.name
    _, problems = check_options(given)
    reported = {problem.option for problem in problems if problem.level is Level.ERROR}
    problems += [problem for problem in path_problems(values, home) if problem.option not in reported]
    problems += flavour_mismatch(values)
    # A hook that is missing or not allowed may be fixed before a start.
    problems += [replace(problem, level=Level.WARNING) for problem in resolve_scripts(values, home)[1]]
    errors, warnings, suggestions = [], [], []
    for problem in problems:
        if problem.level is Level.ERROR and not _can_wait(problem, named):
            errors.append(problem)
        elif problem.level is Level.NOTE:
            suggestions.append(problem)
        else:
            warnings.append(problem)
    return CheckedConfig(values, errors, [str(one) for one in limited(warnings)], [str(one) for one in limited(suggestions)])


def _can_wait(problem: Problem, named: Collection[str]) -> bool:
    is_absent = problem.code == "missing" and problem.option in REGISTRY and problem.option not in named
    return problem.code in FIXED_BY_FORM or is_absent


def path_problems(values: Mapping[str, Any], home: Home) -> list[Problem]:
    """Paths that no run could use, whatever will lie there when it starts."""
    problems = []
    for name, rule in LOCAL.items():
        if values.get(name) is not None:
            found = resolve(values[name], name, home=home, kind=rule.kind, writing=rule.writing)
            problems += [found] if isinstance(found, Problem) else []
    for name in WEIGHTS:
        text = values.get(name)
        if text and not is_repository(text):
            found = resolve_weights(text, name, home)
            problems += [found] if isinstance(found, Problem) else []
    for name in ADAPTERS:
        text = values.get(name)
        if text and hub_file(text) is None:
            found = resolve(text, name, home=home)
            problems += [found] if isinstance(found, Problem) else []
    return problems


def flavour_mismatch(values: Mapping[str, Any]) -> list[Problem]:
    """A warning where the weights are those of another flavour than the one that is named."""
    spec = find_spec(str(values.get("model_family", "")))
    flavour, weights = values.get("model_flavour"), values.get("pretrained_model_name_or_path")
    if spec is None or flavour not in spec.flavours or weights in (None, spec.flavours[str(flavour)]):
        return []
    others = [name for name, repository in spec.flavours.items() if repository == weights]
    if not others:
        return []
    message = f"pretrained_model_name_or_path={weights} is the flavour {others[0]}, and wins over model_flavour={flavour}."
    hint = f"leave it out, or set it to {spec.flavours[str(flavour)]}"
    return [Problem.warning("pretrained_model_name_or_path", "other_flavour", message, got=weights, hint=hint)]


def effective_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Option -> the value that an empty option has: the family's default, else the registry's. Required options are left out."""
    defaults = {name: spec.default for name, spec in REGISTRY.items() if not spec.required}
    family_spec = find_spec(str(config.get("model_family", "")))
    if family_spec is None:
        return defaults
    flavour = str(config.get("model_flavour") or family_spec.default_flavour)
    seed = config.get("seed")
    return {
        **defaults,
        "model_flavour": family_spec.default_flavour,
        "pretrained_model_name_or_path": family_spec.flavours.get(flavour),
        "prediction_type": family_spec.objective,
        "validation_seed": defaults["seed"] if seed is None else seed,
        **family_spec.defaults_of(flavour),
    }

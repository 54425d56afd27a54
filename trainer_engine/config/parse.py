"""Parses option names and values as users send them into typed options, or reports every problem at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.options.gone import GONE, gone_problem, means_default
from trainer_engine.config.options.hints import HINTS, hint_problem
from trainer_engine.config.options.refused import refusal_of
from trainer_engine.config.options.registry import REGISTRY, TrainingOptions, build, canonical_name, not_available
from trainer_engine.config.options.values import parse_value, problem_with, shown_value
from trainer_engine.config.published_quantised import kept_as_published
from trainer_engine.config.quantization_config import OPTION as QUANTISED
from trainer_engine.config.quantization_config import quantised_components
from trainer_engine.config.rules.check import broken_rules
from trainer_engine.config.rules.sharding import implied_by_sharding
from trainer_engine.contract.errors import InvalidOptions, Problem, errors_in
from trainer_engine.contract.messages import Suggestions


def unknown_option(name: str, known: Iterable[str], suggestions: Suggestions) -> Problem:
    """Returns the problem of an unknown option name, with the nearest known name as its hint."""
    hint = suggestions.nearest(name, known, otherwise="docs/options.md lists every option")
    return Problem.error(name[:100], "unknown_option", f"There is no option {name[:100]!r}.", expected="the name of an option", hint=hint)


def _not_available(name: str, value: object) -> Problem | None:
    default = not_available()[name]
    if means_default(value, default):
        return None
    if name in HINTS:
        return hint_problem(name, value, default)
    expected = f"its default, {default!r}" if default is not None else "nothing"
    message = f"{name} is not available: {refusal_of(name).about}."
    return Problem.error(name, "not_available", message, got=value, expected=expected, hint="leave it out")


def _mean_the_same(name: str, value: object, other: object) -> bool:
    """Whether two values of an option are equal once they are parsed: ``true`` and ``True``, ``1e-4`` and ``0.0001``."""
    try:
        return name in REGISTRY and bool(parse_value(REGISTRY[name], value) == parse_value(REGISTRY[name], other))
    except WrongValue:
        return str(value) == str(other)


def _by_canonical_name(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Returns the values by canonical name, and a problem for each option given twice with different values."""
    found: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    problems = []
    for key, value in values.items():
        name = canonical_name(str(key))
        if name in found and not _mean_the_same(name, found[name], value):
            message = f"{name} is given twice, as {spelled[name]} and as {key}, with different values."
            problems.append(
                Problem.error(name, "conflicting_values", message, got=shown_value(REGISTRY.get(name), value), hint="send one of them")
            )
        found[name], spelled[name] = value, str(key)
    return found, problems


def normalise(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Returns the typed values of the given options by canonical name, and the problems of each single value.

    An option of the format that is not implemented yet is dropped if it has its default, or asks for what happens anyway, and is an
    error otherwise.
    """
    typed: dict[str, Any] = {}
    suggestions, known = Suggestions(), [*REGISTRY, *not_available()]
    named, problems = _by_canonical_name(values)
    for name, value in named.items():
        if name in REGISTRY:
            try:
                typed[name] = parse_value(REGISTRY[name], value)
            except WrongValue as wrong:
                problems.append(problem_with(REGISTRY[name], value, wrong))
        elif name in not_available():
            problem = _not_available(name, value)
            problems.extend([problem] if problem else [])
        elif name in GONE:
            problems.append(gone_problem(name, value))
        else:
            problems.append(unknown_option(name, known, suggestions))
    return typed, problems


def missing_options(values: Mapping[str, Any]) -> list[Problem]:
    """Returns a problem for each required option that is not given."""
    problems = []
    for spec in REGISTRY.values():
        if spec.required and spec.name not in values:
            message = f"{spec.name} is missing."
            problems.append(Problem.error(spec.name, "missing", message, expected=spec.expected, hint=f"send --{spec.name}"))
    return problems


def check_options(values: Mapping[str, Any]) -> tuple[TrainingOptions | None, list[Problem]]:
    """Returns the typed options, or None if there is an error, and all problems: errors, warnings and notes.

    A value that is not given is the default of the family, or else the default of the registry.
    """
    typed, problems = normalise(values)
    reported = {problem.option for problem in problems}
    problems += [problem for problem in missing_options(typed) if problem.option not in reported]
    named = quantised_components(typed.get(QUANTISED))[0]
    usual = {option: REGISTRY[option].default for option in named}
    typed |= {option: name for option, name in named.items() if typed.get(option, usual[option]) == usual[option]}
    typed |= implied_by_sharding(typed)
    typed |= kept_as_published(typed)
    rules = broken_rules(typed, reported)
    problems += rules.problems
    if errors_in(problems):
        return None, problems
    return build(rules.values), problems


def parse_options(values: Mapping[str, Any]) -> TrainingOptions:
    """Returns the typed options. Raises InvalidOptions with every error."""
    options, problems = check_options(values)
    if options is None:
        raise InvalidOptions(errors_in(problems))
    return options

"""Checks options together: every rule of the option groups, with the defaults of the family filled in."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trainer_engine.config.families import find_spec
from trainer_engine.config.options.registry import FAMILY_RULES, REGISTRY, Rule, Values
from trainer_engine.config.rules import (
    adapter,
    checkpointing,
    clips,
    computation,
    control,
    controlnet,
    data,
    distributed,
    evaluation,
    hooks,
    memory,
    model,
    optimizer,
    precision,
    publishing,
    routing,
    run,
    sharding,
    skipped_layers,
    stages,
    text_encoders,
    timesteps,
    updates,
    validation,
)
from trainer_engine.contract.errors import Problem

GROUPS = (
    *(run, distributed, sharding, optimizer, updates, data, model, timesteps, precision, computation),
    *(memory, controlnet, control, text_encoders, adapter, routing),
    *(validation, stages, skipped_layers, clips, evaluation, checkpointing, hooks, publishing),
)
RULES: tuple[Rule, ...] = tuple(rule for group in GROUPS for rule in group.RULES)


@dataclass(frozen=True)
class Checked:
    """Values with every default filled in, and the problems of their combination."""

    values: dict[str, Any]
    problems: list[Problem]


def broken_rules(given: Values, reported: Collection[str]) -> Checked:
    """Checks the given values together. Problems of options in ``reported``, which have a problem already, are left out."""
    values = dict(given)
    problems = list(model.family_problems(values)) if "model_family" in values else []
    for name, value in resolved_defaults(values).items():
        values.setdefault(name, value)
    values.setdefault("num_train_epochs", 0 if values.get("max_train_steps") else REGISTRY["num_train_epochs"].default)
    for name, spec in REGISTRY.items():
        if not spec.required:
            values.setdefault(name, spec.default)
    for rule in (*RULES, *FAMILY_RULES.get(str(values.get("model_family", "")), ())):
        problems += rule(values)
    return Checked(values, [problem for problem in problems if problem.option not in reported])


def resolved_defaults(values: Values) -> Mapping[str, Any]:
    """Returns the option defaults of the family that the values name."""
    family_spec = find_spec(str(values.get("model_family", "")))
    return family_spec.defaults_of(values.get("model_flavour")) if family_spec else {}

"""What the options of adapters that only validations see must keep together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.adapters.validation_adapter import (
    COMPARISON,
    CONFIG,
    MODE,
    NAME,
    NONE,
    OPTION,
    STRENGTH,
    address_problems,
    label_of,
    label_problems,
    parse_validation_adapter,
    strength_problems,
)
from trainer_engine.config.options.hooks import EXTERNAL
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.contract.errors import Problem

Values = Mapping[str, Any]


def options_have_a_validation_adapter(values: Values) -> Iterator[Problem]:
    yield from strength_problems(values[STRENGTH], STRENGTH)
    if values[OPTION] and values[CONFIG]:
        message = f"{CONFIG} names adapters, and {OPTION} another."
        yield Problem.error(CONFIG, "one_of_two", message, expected=f"{CONFIG} or {OPTION}")
    if values[OPTION]:
        return
    if values[MODE] == COMPARISON and not values[CONFIG]:
        message = f"{MODE}=comparison draws with an adapter, and none is named."
        yield Problem.error(MODE, "missing_path", message, got=COMPARISON, expected=f"{OPTION} or {CONFIG} beside it")
    for name in (NAME, STRENGTH):
        if values[name] != REGISTRY[name].default:
            yield Problem.note(name, "no_effect", f"{OPTION} is empty: {name} has no effect.", got=values[name])


def validation_adapter_is_shown(values: Values) -> Iterator[Problem]:
    given = OPTION if values[OPTION] else CONFIG
    if not values[given]:
        return
    reasons = {
        f"{MODE}=none leaves adapters alone": values[MODE] == NONE,
        "validation_disable draws nothing": values["validation_disable"],
        f"validation_method={EXTERNAL} draws without the network that is trained": values["validation_method"] == EXTERNAL,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        yield Problem.note(given, "no_effect", f"{reason}: {given} has no effect.", got=values[given])


def validation_adapters_are_valid(values: Values) -> Iterator[Problem]:
    path = values[OPTION]
    if path:
        yield from address_problems(path, OPTION)
    if path and values[MODE] != NONE:
        named = bool(values[NAME])
        yield from label_problems(label_of(path, values[NAME]), NAME if named else OPTION, "" if named else f"set {NAME}")
    if values[CONFIG]:
        yield from parse_validation_adapter(values[CONFIG])[1]


VISITING_RULES = (options_have_a_validation_adapter, validation_adapter_is_shown, validation_adapters_are_valid)

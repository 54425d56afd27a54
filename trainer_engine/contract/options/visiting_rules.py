"""What the options of an adapter that only validations see must keep together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.contract.errors import Problem
from trainer_engine.contract.options.hooks import EXTERNAL
from trainer_engine.contract.options.registry import REGISTRY
from trainer_engine.contract.prompt_library import unsafe_reason
from trainer_engine.contract.visiting_adapter import COMPARISON, ENDING, NONE, OPTION, hub_file, label_of

Values = Mapping[str, Any]
NAME, STRENGTH, MODE = "validation_adapter_name", "validation_adapter_strength", "validation_adapter_mode"
RESERVED = ("ema", "startup")
"""Labels of other images."""


def visiting_strength_is_one(values: Values) -> Iterator[Problem]:
    if values[STRENGTH] == 0:
        message = "At a strength of 0 the images would not show the adapter."
        hint = f"or {MODE}=none to leave it alone"
        yield Problem.error(STRENGTH, "out_of_range", message, got=values[STRENGTH], expected="a number other than 0", hint=hint)


def visiting_options_have_an_adapter(values: Values) -> Iterator[Problem]:
    if values[OPTION]:
        return
    if values[MODE] == COMPARISON:
        message = f"{MODE}=comparison draws with an adapter, and none is named."
        yield Problem.error(MODE, "missing_path", message, got=COMPARISON, expected=f"{OPTION} beside it")
    for name in (NAME, STRENGTH):
        if values[name] != REGISTRY[name].default:
            yield Problem.note(name, "no_effect", f"{OPTION} is empty: {name} has no effect.", got=values[name])


def visiting_adapter_is_shown(values: Values) -> Iterator[Problem]:
    if not values[OPTION]:
        return
    reasons = {
        f"{MODE}=none leaves the adapter alone": values[MODE] == NONE,
        "validation_disable draws nothing": values["validation_disable"],
        f"validation_method={EXTERNAL} draws without the network that is trained": values["validation_method"] == EXTERNAL,
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        yield Problem.note(OPTION, "no_effect", f"{reason}: {OPTION} has no effect.", got=values[OPTION])


def visiting_address_is_one(values: Values) -> Iterator[Problem]:
    """Of a file on the hub; what lies on this machine is looked at before a start."""
    there = hub_file(values[OPTION]) if values[OPTION] else None
    if there is not None and (not there.file.endswith(ENDING) or there.file.startswith("/")):
        message = f"{there.file} in the repository {there.repository} is no {ENDING} file."
        yield Problem.error(OPTION, "not_safetensors", message, got=values[OPTION], expected=f"owner/name:file{ENDING}")


def visiting_label_names_files(values: Values) -> Iterator[Problem]:
    if not values[OPTION] or values[MODE] == NONE:
        return
    label = label_of(values[OPTION], values[NAME])
    option = NAME if values[NAME] else OPTION
    hint = "" if values[NAME] else f"set {NAME}"
    reason = unsafe_reason(label)
    if reason:
        message = f"The name {label!r} {reason}, and images are named after it."
        yield Problem.error(
            option, "unsafe_name", message, got=label, expected="letters, digits, spaces, dots, dashes, underscores", hint=hint
        )
    elif label.casefold() in RESERVED:
        message = f"Images that are called {label} are other ones."
        yield Problem.error(option, "reserved_name", message, got=label, expected=f"none of {', '.join(RESERVED)}", hint=hint)


VISITING_RULES = (
    visiting_strength_is_one,
    visiting_options_have_an_adapter,
    visiting_adapter_is_shown,
    visiting_address_is_one,
    visiting_label_names_files,
)

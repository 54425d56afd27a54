"""The assistant adapter: a frozen adapter that is active beside the weights that a run trains (``assistant_lora_path``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.adapters.validation_adapter import ValidationAdapterSource, address_problems
from trainer_engine.contract.errors import Problem

PATH, DISABLE = "assistant_lora_path", "disable_assistant_lora"
STRENGTH, INFERENCE_STRENGTH = "assistant_lora_strength", "assistant_lora_inference_strength"
LABEL = "assistant"


def assistant_of(values: Mapping[str, Any]) -> ValidationAdapterSource | None:
    """Returns the assistant adapter of a run with its strength in training, from valid option values by name; None if there is none."""
    if values["model_type"] != "lora" or values[DISABLE] or not values[PATH] or not values[STRENGTH]:
        return None
    return ValidationAdapterSource(values[PATH], values[STRENGTH], PATH)


def assistant_problems(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """Checks the options of the assistant adapter together. ``defaults`` are those of the options without a family."""
    path = values[PATH]
    if path:
        yield from address_problems(path, PATH)
    if path and not values[DISABLE] and not values[STRENGTH]:
        message = f"{STRENGTH}=0 leaves the assistant adapter out of training."
        yield Problem.error(STRENGTH, "no_strength", message, got=0, expected="a number other than 0", hint=f"or set {DISABLE}=true")
    reason = f"{DISABLE}=true" if values[DISABLE] and path else "" if path else f"{PATH} is empty"
    for name in (STRENGTH, INFERENCE_STRENGTH):
        if reason and values[name] != defaults[name]:
            yield Problem.note(name, "no_effect", f"{reason}: {name} has no effect.", got=values[name])
    if values[DISABLE] and not path:
        yield Problem.note(DISABLE, "no_effect", f"{PATH} is empty: {DISABLE} has no effect.", got=True)

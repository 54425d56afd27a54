"""Rules of text encoders: their number types and layers, which runs can train them, and their learning rate."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.encoder_fit import CLIP_SKIP
from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.precisions import QUANTISED
from trainer_engine.contract.errors import Problem

TRAIN, RATE = "train_text_encoder", "text_encoder_lr"
PRECISIONS = tuple(f"text_encoder_{number}_precision" for number in (1, 2, 3, 4))


def text_encoders_can_be_trained(values: Values) -> Iterator[Problem]:
    """Refuses ``train_text_encoder`` for families and adapters that cannot, and quantised weights of a trained text encoder."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if not values[TRAIN] or family_spec is None:
        return
    if not family_spec.trainable_text_encoders:
        able = ", ".join(sorted(spec.name for spec in specs().values() if spec.trainable_text_encoders))
        message = f"{family_spec.title} is trained beside a frozen text encoder."
        yield Problem.error(TRAIN, "not_for_family", message, got=True, expected="false", hint=f"families that can: {able}")
        return
    if values.get("model_type") == "lora" and values["lora_type"] == "lycoris":
        message = "A LyCORIS adapter changes the network alone: its file format has no place for text encoders."
        hint = "use lora_type=standard or model_type=full"
        yield Problem.error(TRAIN, "not_for_lycoris", message, got=True, expected="false", hint=hint)
    for name in PRECISIONS[: len(family_spec.trainable_text_encoders)]:
        if values[name] in QUANTISED:
            message = f"{values[name]} weights cannot be trained, and {TRAIN} trains this text encoder."
            yield Problem.error(name, "cannot_be_trained", message, got=values[name], expected="no_change")


def the_rate_of_text_encoders_has_an_effect(values: Values) -> Iterator[Problem]:
    """Notes a rate that nothing uses, and refuses a second rate for an optimizer that finds the only one it has."""
    rate, optimizer = values[RATE], OPTIMIZERS.get(values["optimizer"])
    if rate is None:
        return
    if not values[TRAIN]:
        yield Problem.note(RATE, "no_effect", f"{TRAIN} is off: {RATE} has no effect.", got=rate)
    elif optimizer is not None and optimizer.finds_rate and rate != values["learning_rate"]:
        message = f"{optimizer.name} finds one learning rate for all weights."
        yield Problem.error(RATE, "one_rate", message, got=rate, expected="empty, or the same as learning_rate")


def layers_of_clip_are_counted_where_there_are_some(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    if values[CLIP_SKIP] and family_spec is not None and not family_spec.prompts.clip_folders:
        message = f"{family_spec.title} reads no text encoder of CLIP: {CLIP_SKIP} has no effect."
        yield Problem.note(CLIP_SKIP, "no_effect", message, got=values[CLIP_SKIP])


def types_of_text_encoders_have_an_effect(values: Values) -> Iterator[Problem]:
    """Notes the number type of a text encoder that the family does not have."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None:
        return
    count = len(family_spec.prompts.text_encoder_folders)
    for option in PRECISIONS[count:]:
        if values[option] != REGISTRY[option].default:
            message = f"{family_spec.title} has {count} text encoder{'s' if count > 1 else ''}: {option} has no effect."
            yield Problem.note(option, "no_effect", message, got=values[option])


RULES: tuple[Rule, ...] = (
    types_of_text_encoders_have_an_effect,
    layers_of_clip_are_counted_where_there_are_some,
    text_encoders_can_be_trained,
    the_rate_of_text_encoders_has_an_effect,
)

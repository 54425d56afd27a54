"""Rules of runs that train a ControlNet: which families have one, and which options it cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.controlnet import CUSTOM, NAME, WEIGHTS, ControlNetSpec, custom_config
from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.rules.memory import STREAMS
from trainer_engine.contract.errors import Problem


def _spec(values: Values) -> ControlNetSpec | None:
    """The ControlNet of the run, if it trains one that can be trained."""
    family_spec = find_spec(str(values.get("model_family", "")))
    return family_spec.controlnet if family_spec and values[NAME] else None


def the_model_has_a_controlnet(values: Values) -> Iterator[Problem]:
    """Refuses ``controlnet`` for families and flavours without one, and notes its options in other runs."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if not values[NAME]:
        for name in (WEIGHTS, CUSTOM):
            if values[name]:
                yield Problem.note(name, "no_effect", f"controlnet is off: {name} has no effect.", got=values[name])
    elif family_spec is not None and family_spec.controlnet is None:
        able = ", ".join(sorted(spec.name for spec in specs().values() if spec.controlnet))
        message = f"The diffusers library has no ControlNet for {family_spec.title}."
        yield Problem.error(NAME, "not_for_family", message, got=True, expected="false", hint=f"families that have one: {able}")
    elif family_spec is not None and family_spec.controlnet is not None:
        flavour = values.get("model_flavour") or family_spec.default_flavour
        known = family_spec.controlnet.parameters
        if flavour in family_spec.flavours and flavour not in known:
            message = f"The diffusers library has no ControlNet for {family_spec.title} {flavour}."
            yield Problem.error(NAME, "not_for_flavour", message, got=True, expected=f"model_flavour={' or '.join(known)}")


def an_adapter_begins_with_its_controlnet(values: Values) -> Iterator[Problem]:
    """Refuses ``init_lora`` on a new ControlNet, which has not the layers that were trained together with the adapter."""
    if values[NAME] and values["init_lora"] and not values[WEIGHTS]:
        message = "init_lora is an adapter on a ControlNet, but this run makes a new one."
        hint = "name the controlnet folder of the run that trained the adapter"
        yield Problem.error(WEIGHTS, "missing_path", message, expected="a repository or a folder", hint=hint)


def a_new_controlnet_can_be_made(values: Values) -> Iterator[Problem]:
    spec = _spec(values)
    if spec is None:
        return
    yield from custom_config(values[CUSTOM], spec)[1]
    if values[CUSTOM] and values[WEIGHTS]:
        yield Problem.note(CUSTOM, "no_effect", f"{WEIGHTS} says how the ControlNet is made: {CUSTOM} has no effect.", got=values[CUSTOM])


def a_controlnet_is_trained_alone(values: Values) -> Iterator[Problem]:
    """Refuses what needs trained text encoders or streamed weights beside a ControlNet."""
    if not values[NAME]:
        return
    if values["train_text_encoder"]:
        message = "A ControlNet is trained beside frozen text encoders: its result has no place for others."
        yield Problem.error("train_text_encoder", "not_with_controlnet", message, got=True, expected="false")
    if values["lora_format"] == "comfyui" and values.get("model_type") == "lora":
        message = "ComfyUI has no keys for an adapter on a ControlNet."
        yield Problem.error("lora_format", "not_with_controlnet", message, got="comfyui", expected="diffusers")
    for name in (name for name in STREAMS if values[name]):
        message = f"{name} streams the weights below an adapter. The network beside a ControlNet stays on its device."
        hint = "base_model_precision keeps the frozen network in fewer bytes"
        yield Problem.error(name, "not_with_controlnet", message, got=values[name], expected=f"{REGISTRY[name].default}", hint=hint)


RULES: tuple[Rule, ...] = (
    the_model_has_a_controlnet,
    an_adapter_begins_with_its_controlnet,
    a_new_controlnet_can_be_made,
    a_controlnet_is_trained_alone,
)

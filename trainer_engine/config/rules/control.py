"""Rules of runs with ``control``, and of the control images that validations of such runs and of ControlNets need."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.control import NAME, ControlSpec, sees_control_images
from trainer_engine.config.controlnet import NAME as CONTROLNET
from trainer_engine.config.controlnet import ControlNetSpec
from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.contract.errors import Problem


def _family(values: Values) -> FamilySpec | None:
    return find_spec(str(values.get("model_family", "")))


def the_network_can_be_widened(values: Values) -> Iterator[Problem]:
    """Refuses ``control`` for families and flavours whose network takes no control image."""
    family_spec = _family(values)
    if not values[NAME] or family_spec is None:
        return
    if family_spec.control is None:
        hint = f"families that can: {', '.join(sorted(spec.name for spec in specs().values() if spec.control))}"
        hint += "; controlnet=true trains a network beside this one that follows control images" if family_spec.controlnet else ""
        message = f"No pipeline generates from a control image with a widened network of {family_spec.title}."
        yield Problem.error(NAME, "not_for_family", message, got=True, expected="false", hint=hint)
        return
    flavour, known = values.get("model_flavour") or family_spec.default_flavour, family_spec.control.parameters
    if flavour in family_spec.flavours and flavour not in known:
        message = f"{family_spec.title} {flavour} looks at images in another way, and takes no control image."
        yield Problem.error(NAME, "not_for_flavour", message, got=True, expected=f"model_flavour={' or '.join(known)}")


def control_is_trained_in_a_form_that_loads(values: Values) -> Iterator[Problem]:
    """Refuses results that have no place for the widened layer."""
    if not values[NAME]:
        return
    if values[CONTROLNET]:
        message = "controlnet trains a network beside a frozen one, and control widens the network itself: a run does one of them."
        yield Problem.error(NAME, "not_with_controlnet", message, got=True, expected="false, or controlnet=false")
    if values.get("model_type") != "lora":
        return
    if values["lora_type"] != "standard":
        message = "Programs that read LyCORIS files do not widen the first layer of the network for them."
        yield Problem.error("lora_type", "not_with_control", message, got=values["lora_type"], expected="standard, or model_type=full")
    elif values["use_dora"]:
        message = "The diffusers library reads no DoRA on a widened layer."
        yield Problem.error("use_dora", "not_with_control", message, got=True, expected="false")
    family_spec = _family(values)
    if values["lora_format"] == "comfyui" and family_spec and family_spec.control and not family_spec.control.in_comfyui:
        message = f"ComfyUI does not generate with {family_spec.title} and a control image."
        yield Problem.error("lora_format", "not_with_control", message, got="comfyui", expected="diffusers")


def validations_have_control_images(values: Values) -> Iterator[Problem]:
    """Refuses validations without control images, and notes options that pipelines with control images do not have."""
    spec = _looking(values)
    if spec is None or values["validation_disable"]:
        return
    if values["validation_using_datasets"] is False and not values["validation_input"]:
        what = "A ControlNet" if values[CONTROLNET] else "A network with control"
        message = f"{what} generates from control images, and validations have none."
        hint = "leave validation_using_datasets empty to use those of the datasets, or set validation_disable"
        yield Problem.error("validation_using_datasets", "no_control", message, got=False, expected="true, or validation_input", hint=hint)
    for name in sorted(spec.unused):
        if values[name] != REGISTRY[name].default:
            yield Problem.note(name, "no_effect", f"{spec.pipeline} does not support it: {name} has no effect.", got=values[name])


def _looking(values: Values) -> ControlNetSpec | ControlSpec | None:
    """What looks at control images in this run, or None."""
    family_spec = _family(values)
    if family_spec is None or not sees_control_images(values):
        return None
    return family_spec.controlnet if values[CONTROLNET] else family_spec.control


RULES: tuple[Rule, ...] = (the_network_can_be_widened, control_is_trained_in_a_form_that_loads, validations_have_control_images)

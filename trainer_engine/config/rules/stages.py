"""Rules of validation images that both networks of a noise schedule make."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.control import sees_control_images
from trainer_engine.config.families import find_spec
from trainer_engine.config.family_parts import FULL_PIPELINE as FULL
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options.registry import Rule, Values
from trainer_engine.config.rules.timesteps import STRENGTH
from trainer_engine.config.stages import trained_stage
from trainer_engine.contract.errors import Problem

STEPS = "validation_num_inference_steps"


def both_stages_make_the_images(values: Values) -> Iterator[Problem]:
    """Refuses two networks for a run that trains neither, and notes settings of theirs that have no effect."""
    spec = find_spec(str(values.get("model_family", "")))
    if spec is None or spec.stages is None:
        return
    if values[spec.stages.mode] != FULL:
        yield from _unused(values, spec.stages.models, f"{spec.stages.mode} is {values[spec.stages.mode]}")
    elif values["validation_disable"]:
        message = f"validation_disable is set: {spec.stages.mode} has no effect."
        yield Problem.note(spec.stages.mode, "no_effect", message, got=FULL)
    elif sees_control_images(values):
        message = "Validation images with control images are made by the network that is trained with them alone."
        yield Problem.error(spec.stages.mode, "not_with_controlnet", message, got=FULL, expected="trained-stage")
    else:
        yield from _problems_of_pair(values, spec, spec.stages.mode, spec.stages.models)


def _problems_of_pair(values: Values, spec: FamilySpec, mode: str, models: tuple[str, str]) -> Iterator[Problem]:
    assert spec.stages is not None
    flavour, strength, steps = values.get("model_flavour") or spec.default_flavour, values[STRENGTH], values[STEPS]
    trained = trained_stage(values, spec.stages, flavour)
    if trained is None:
        message = f"This run trains the whole schedule of {flavour}, which is neither of two networks that share it."
        expected = f"refiner_training=true, or model_flavour={' or '.join(sorted(spec.stages.flavours))}"
        yield Problem.error(mode, "trains_no_stage", message, got=FULL, expected=expected)
        return
    yield from _unused(values, models[trained - 1 : trained], f"this run trains stage {trained}")
    if strength in (0, 1) and not values["refiner_training"]:
        message = f"{STRENGTH}={strength:g} leaves no timestep of the schedule to one of the two networks."
        yield Problem.error(STRENGTH, "empty_range", message, got=strength, expected="between 0 and 1")
        return
    for number, share in ((1, 1 - strength), (2, strength)):
        if 0 < steps * share < 1:
            message = f"{steps} sampler steps may leave none to stage {number}, which has {share:.3g} of the schedule."
            yield Problem.note(STEPS, "too_few_for_stage", message, got=steps, expected=f"at least {int(1 / share + 1)}")


def _unused(values: Values, options: tuple[str, ...], reason: str) -> Iterator[Problem]:
    for name in options:
        if values[name]:
            yield Problem.note(name, "no_effect", f"{reason}: {name} has no effect.", got=values[name])


RULES: tuple[Rule, ...] = (both_stages_make_the_images,)

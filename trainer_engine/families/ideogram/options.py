"""Options of the Ideogram 4 family, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.published_quantised import kept_as_published
from trainer_engine.contract.errors import Problem

MEAN, DEVIATION = "ideogram_schedule_mu", "ideogram_schedule_std"
SECOND, UPCAST = "ideogram_load_unconditional_transformer", "ideogram_fp8_base_upcast"
OTHER_SCHEDULES = ("flow_use_uniform_schedule", "flow_use_beta_schedule")
"""Options with which timesteps are not logit-normal."""


class IdeogramOptions(OptionGroup):
    """Options of Ideogram 4 alone."""

    ideogram_auto_json: bool = option(
        True,
        "Write captions and validation prompts that are no JSON objects as captions in JSON, which the network was trained on: the text "
        "describes the image and its only element. JSON objects are put on one line. false takes every text as it is.",
    )
    ideogram_schedule_mu: float = option(
        0.0,
        "Mean of the logit-normal distribution of timesteps at 512 x 512 pixels; above 0 there is more noise. Larger images add half the "
        "logarithm of how many times as many pixels they have.",
        ge=-5,
        le=5,
    )
    ideogram_schedule_std: float = option(1.5, "Standard deviation of the logit-normal distribution of timesteps.", gt=0, le=10)
    ideogram_load_unconditional_transformer: bool = option(
        False,
        "Make the unguided prediction of validation images with the second network of the base model, as the published pipeline does. It "
        "is in memory while images are generated, and sees no prompt. Without it the trained network makes that prediction, for "
        "validation_negative_prompt.",
    )
    ideogram_fp8_base_upcast: bool = option(
        False,
        "Keep the frozen base weights in the type of the arithmetic, with twice the memory of the published 8 bits. Without it, and with "
        "base_model_precision=no_change, weights of the published repositories stay in the type that they are published in.",
    )


def the_schedule_is_that_of_the_family(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Notes on options of timesteps that have no effect here, or beside one another."""
    if values["flow_sigmoid_scale"] != 1:
        message = "The standard deviation of timesteps is ideogram_schedule_std: flow_sigmoid_scale has no effect."
        yield Problem.note("flow_sigmoid_scale", "no_effect", message, got=values["flow_sigmoid_scale"])
    if values[MEAN] and (values["flow_schedule_shift"] or not values["flow_schedule_auto_shift"]):
        why = "flow_schedule_shift is set" if values["flow_schedule_shift"] else "flow_schedule_auto_shift is false"
        yield Problem.note(MEAN, "no_effect", f"{why}: {MEAN} has no effect.", got=values[MEAN])
    other = next((option for option in OTHER_SCHEDULES if values[option]), "")
    if other and values[DEVIATION] != IdeogramOptions.model_fields[DEVIATION].default:
        yield Problem.note(DEVIATION, "no_effect", f"{other} is true: {DEVIATION} has no effect.", got=values[DEVIATION])


def the_other_options_have_an_effect(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Notes a second network that generates nothing, and weights that are not widened because they are not kept as published."""
    if values[SECOND] and values["validation_disable"]:
        yield Problem.note(SECOND, "no_effect", f"validation_disable is true: {SECOND} has no effect.", got=True)
    if values[UPCAST] and not kept_as_published({**values, UPCAST: False}):
        message = f"Only frozen weights that stay in the type they are published in are widened: {UPCAST} has no effect."
        yield Problem.note(UPCAST, "no_effect", message, got=True)


def published_weights_are_quantised(values: Mapping[str, Any]) -> Iterator[Problem]:
    """A warning of a full fine-tune that begins with weights which are published in 8 or 4 bits alone."""
    if values.get("model_type") != "full" or values.get("pretrained_model_name_or_path"):
        return
    flavour = values.get("model_flavour") or "fp8"
    bits, hint = (4, "model_flavour=fp8 has the more exact weights") if flavour == "nf4" else (8, "an adapter leaves them as they are")
    message = f"The weights are published in {bits} bits: a full fine-tune begins with rounded numbers."
    yield Problem.warning("model_flavour", "quantised_weights", message, got=flavour, hint=hint)


GROUP = IdeogramOptions
RULES = (the_schedule_is_that_of_the_family, the_other_options_have_an_effect, published_weights_are_quantised)

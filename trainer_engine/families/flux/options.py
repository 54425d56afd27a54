"""Options of the Flux.1 family, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.errors import Problem

CONTROL_TARGETS = ("controlnet", "all+ffs+embedder+controlnet")


class FluxOptions(OptionGroup):
    """Options of Flux.1 alone."""

    flux_guidance_value: float = option(
        1.0,
        "Guidance input of the network while it trains; 1 is none. Without effect on schnell and libreflux, which take no guidance.",
        ge=0,
    )
    flux_guidance_mode: Literal["constant", "random-range"] = option(
        "constant", "Train every sample with flux_guidance_value, or with a random value between flux_guidance_min and flux_guidance_max."
    )
    flux_guidance_min: float = option(0.0, "Lowest value of random-range.", ge=0)
    flux_guidance_max: float = option(4.0, "Highest value of random-range.", ge=0)
    flux_attention_masked_training: bool = option(
        False, "Keep the network from attending to the padding of prompts, while training and in validation images. It was trained with it."
    )


WITHOUT_GUIDANCE = ("schnell", "libreflux")
"""Flavours whose network takes no guidance."""
RANGE = ("flux_guidance_min", "flux_guidance_max")


def guidance_makes_sense(values: Mapping[str, Any]) -> Iterator[Problem]:
    """An error for a range with its ends in the wrong order, and notes on options that are not in use."""
    is_range = values["flux_guidance_mode"] == "random-range"
    low, high = (values[name] for name in RANGE)
    if is_range and low > high:
        message = f"flux_guidance_min={low:g} is above flux_guidance_max={high:g}."
        yield Problem.error("flux_guidance_min", "above_maximum", message, got=low, expected=f"at most {high:g}")
    if values.get("model_flavour") in WITHOUT_GUIDANCE:
        idle: tuple[str, ...] = ("flux_guidance_value", "flux_guidance_mode", *RANGE)
        reason = f"{values['model_flavour']} takes no guidance"
    elif is_range:
        idle, reason = ("flux_guidance_value",), "flux_guidance_mode=random-range samples the value"
    else:
        idle, reason = RANGE, "flux_guidance_mode is constant"
    for name in idle:
        if values[name] != FluxOptions.model_fields[name].default:
            yield Problem.note(name, "no_effect", f"{reason}: {name} has no effect.", got=values[name])


def a_controlnet_is_wanted(values: Mapping[str, Any]) -> Iterator[Problem]:
    """An error for layers of a ControlNet in another run, and for a mask that a ControlNet does not take."""
    target = values["flux_lora_target"]
    if target in CONTROL_TARGETS and not values["controlnet"]:
        message = f"flux_lora_target={target} adapts layers that only a ControlNet has."
        yield Problem.error("flux_lora_target", "needs_controlnet", message, got=target, expected="controlnet=true, or another target")
    if target in CONTROL_TARGETS and values["use_dora"] and not values["controlnet_model_name_or_path"]:
        message = "The layers that only a ControlNet has begin with zeros, of which DoRA cannot scale the norm."
        yield Problem.error("use_dora", "not_with_zeros", message, got=True, expected="false, or weights of a ControlNet")
    if values["controlnet"] and values["flux_attention_masked_training"]:
        message = "The ControlNet of the diffusers library attends to the padding of prompts."
        yield Problem.error("flux_attention_masked_training", "not_with_controlnet", message, got=True, expected="false")


GROUP = FluxOptions
RULES = (guidance_makes_sense, a_controlnet_is_wanted)

"""Options of the Stable Diffusion 3.5 family, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from trainer_engine.config.option import OptionGroup, option
from trainer_engine.contract.errors import Problem
from trainer_engine.contract.files import read_document
from trainer_engine.families.sd3.spec import BLOCKS, SPEC

LAYERS, SCALE = "validation_guidance_skip_layers", "validation_guidance_skip_scale"
START, STOP = f"{LAYERS}_start", f"{LAYERS}_stop"
CLIP_UNCONDITIONAL, T5_UNCONDITIONAL = "sd3_clip_uncond_behaviour", "sd3_t5_uncond_behaviour"
EXPECTED = "a list of numbers of blocks, such as [7, 8, 9]"


class Sd3Options(OptionGroup):
    """Options of Stable Diffusion 3.5 alone."""

    sd3_clip_uncond_behaviour: Literal["empty_string", "zero"] = option(
        "empty_string", "What CLIP gives the network for an empty prompt. empty_string: its states. zero: zeros."
    )
    sd3_t5_uncond_behaviour: Literal["empty_string", "zero"] | None = option(
        None, "What T5 gives the network for an empty prompt, as sd3_clip_uncond_behaviour. Empty: the same as CLIP."
    )
    validation_guidance_skip_layers: str | None = option(
        None,
        "Blocks that validation images are also predicted without, to steer away from that prediction: a JSON list of their numbers. "
        "[7, 8, 9] is recommended for medium. Such a sampler step takes half as long again.",
        json=True,
        shape=EXPECTED,
    )
    validation_guidance_skip_layers_start: float = option(0.01, "Share of the sampler steps before blocks are left out.", ge=0, le=1)
    validation_guidance_skip_layers_stop: float = option(0.2, "Share of the sampler steps after which they are not.", ge=0, le=1)
    validation_guidance_skip_scale: float = option(2.8, "Scale of the guidance by validation_guidance_skip_layers.", ge=0, le=30)


def parse_layers(text: str | None) -> tuple[int, ...]:
    """The numbers of a JSON list, none of an empty text. Raises ValueError."""
    found = read_document(text) if text else []
    if not isinstance(found, list) or not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in found):
        raise ValueError("it is not a list of numbers of blocks")
    return tuple(found)


def blocks_can_be_left_out(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Refuses numbers that are no blocks of the flavour, and notes what has no effect without them."""
    try:
        layers = parse_layers(values[LAYERS])
    except ValueError as error:
        yield Problem.error(LAYERS, "not_numbers", f"{LAYERS} names no blocks: {error}.", got=values[LAYERS], expected=EXPECTED)
        return
    blocks = BLOCKS[values.get("model_flavour") or SPEC.default_flavour]
    if wrong := sorted(layer for layer in layers if layer >= blocks):
        message = f"The network has {blocks} blocks, counted from 0: there is no block {wrong[0]}."
        yield Problem.error(LAYERS, "out_of_range", message, got=values[LAYERS], expected=f"numbers below {blocks}")
    if layers and values["validation_guidance"] <= 1:
        message = f"Blocks are left out beside classifier-free guidance, and validation_guidance={values['validation_guidance']:g} is none."
        yield Problem.note(LAYERS, "no_effect", message, got=values[LAYERS], expected="validation_guidance above 1")
    if layers and values[START] >= values[STOP]:
        message = f"{START}={values[START]:g} is not below {STOP}={values[STOP]:g}."
        yield Problem.error(START, "empty_range", message, got=values[START], expected=f"less than {values[STOP]:g}")
    for name in (START, STOP, SCALE):
        if not layers and values[name] != Sd3Options.model_fields[name].default:
            yield Problem.note(name, "no_effect", f"{LAYERS} names no blocks: {name} has no effect.", got=values[name])


GROUP = Sd3Options
RULES = (blocks_can_be_left_out,)

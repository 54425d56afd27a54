"""Options of the Stable Diffusion 3.5 family, and the rules between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from trainer_engine.config.controlnet import CUSTOM, NAME, WEIGHTS, custom_config
from trainer_engine.config.option import OptionGroup, option
from trainer_engine.config.skipped_layers import OPTION as LAYERS
from trainer_engine.config.skipped_layers import outside_problems, parse_layers
from trainer_engine.contract.errors import Problem
from trainer_engine.families.sd3.spec import BLOCKS, SPEC, layers_problem

SCALE = "validation_guidance_skip_scale"


class Sd3Options(OptionGroup):
    """Options of Stable Diffusion 3.5 alone."""

    sd3_clip_uncond_behaviour: Literal["empty_string", "zero"] = option(
        "empty_string", "What CLIP gives the network for an empty prompt. empty_string: its states. zero: zeros."
    )
    sd3_t5_uncond_behaviour: Literal["empty_string", "zero"] | None = option(
        None, "What T5 gives the network for an empty prompt, as sd3_clip_uncond_behaviour. Empty: the same as CLIP."
    )
    validation_guidance_skip_scale: float = option(2.8, "Scale of the guidance by validation_guidance_skip_layers.", ge=0, le=30)


def blocks_can_be_left_out(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Refuses numbers that are no blocks of the flavour, and notes a scale that nothing is scaled by."""
    layers, problems = parse_layers(values[LAYERS])
    blocks = BLOCKS.get(values.get("model_flavour") or SPEC.default_flavour)
    if not problems and blocks is not None:  # an unknown flavour is refused by its own rule
        yield from outside_problems(layers, blocks)
    if not layers and values[SCALE] != Sd3Options.model_fields[SCALE].default:
        yield Problem.note(SCALE, "no_effect", f"{LAYERS} names no blocks: {SCALE} has no effect.", got=values[SCALE])


def every_layer_of_a_controlnet_is_read(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Refuses a new ControlNet with more layers than the transformer of the flavour reads."""
    blocks = BLOCKS.get(values.get("model_flavour") or SPEC.default_flavour)
    if SPEC.controlnet is None or blocks is None or not values[NAME] or values[WEIGHTS]:
        return
    layers = custom_config(values[CUSTOM], SPEC.controlnet)[0].get("num_layers", 1)
    if problem := layers_problem(layers, blocks):
        yield problem


GROUP = Sd3Options
RULES = (blocks_can_be_left_out, every_layer_of_a_controlnet_is_read)

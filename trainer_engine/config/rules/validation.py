"""What the options of validation images must keep together: between one another, and with what a family's pipelines understand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.adapters.validation_adapter import validation_adapter_runs
from trainer_engine.config.families import find_spec
from trainer_engine.config.option import holds_json
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.config.options.validation import parse_resolutions
from trainer_engine.config.prompt_library import DEFAULT, OPTION, built_in_library, parse_prompt_library, same_file_names
from trainer_engine.contract.errors import Problem, errors_in

Values = Mapping[str, Any]
ASKING_FOR_SOMETHING = ("validation_guidance_rescale", "validation_guidance_real")
ONLY_TUNING = ("validation_no_cfg_until_timestep", "inference_scheduler_timestep_spacing")
OF_SOME_FAMILIES = (*ASKING_FOR_SOMETHING, *ONLY_TUNING)
"""Options that the spec of a family has to name in ``sampling.options``."""
UNCONDITIONAL = "unconditional"
PROMPT = "validation"
AVERAGED = "ema"
"""Stands behind the shortname of an image of the moving average."""
STARTUP = "startup"
"""Stands behind that of an image that is drawn as the run begins, where the base model's take the plain name."""


def user_library_is_usable(values: Values) -> Iterator[Problem]:
    """Where the value is the contents; what a path leads to is read before."""
    text = values["user_prompt_library"]
    if not text or not holds_json(text):
        return
    prompts, problems = parse_prompt_library(text)
    yield from problems
    if errors_in(problems):
        return
    shortnames = [prompt.shortname for prompt in prompts]
    shortnames = [*(() if values["validation_disable_unconditional"] else (UNCONDITIONAL,)), *_built_in_shortnames(values), *shortnames]
    shortnames += [PROMPT] if values["validation_prompt"] else []
    labels = [label for label, option in ((AVERAGED, "use_ema"), (STARTUP, "validation_on_startup")) if values[option]]
    validation_adapters = [run.label for run in validation_adapter_runs(values)]
    labels += [*validation_adapters, *(f"{label}_{one}" for label in labels for one in validation_adapters)]
    yield from same_file_names([*shortnames, *(f"{name}_{label}" for label in labels for name in shortnames)])
    if values.get("model_type") == "full" and any(prompt.adapter_strength is not None for prompt in prompts):
        yield Problem.note(OPTION, "no_effect", "model_type=full trains no adapter: adapter_strength has no effect.")


def _built_in_shortnames(values: Values) -> list[str]:
    library = values["validation_prompt_library"]
    return [] if library == "false" else [prompt.shortname for prompt in built_in_library(DEFAULT if library == "true" else library)]


def sampler_is_one_of_the_familys(values: Values) -> Iterator[Problem]:
    family_spec, sampler = find_spec(str(values.get("model_family", ""))), values["validation_noise_scheduler"]
    if family_spec is not None and sampler is not None and sampler not in family_spec.sampling.samplers:
        message = f"{family_spec.title} cannot be drawn with the sampler {sampler}."
        expected = f"one of {', '.join(family_spec.sampling.samplers)}"
        yield Problem.error("validation_noise_scheduler", "not_for_family", message, got=sampler, expected=expected)


def family_understands_the_guidance(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None:
        return
    usual = {name: spec.default for name, spec in REGISTRY.items() if name in OF_SOME_FAMILIES} | dict(family_spec.defaults)
    for name in OF_SOME_FAMILIES:
        if name in family_spec.sampling.options or values[name] == usual[name]:
            continue
        message = f"The pipeline of {family_spec.title} has nothing like {name}."
        if name in ASKING_FOR_SOMETHING:
            yield Problem.error(name, "not_for_family", message, got=values[name], expected=f"{usual[name]:g}")
        else:
            yield Problem.note(name, "no_effect", message, got=values[name])
    steps = values["validation_no_cfg_until_timestep"]
    if "validation_guidance_real" in family_spec.sampling.options and values["validation_guidance_real"] > 1:
        if steps >= values["validation_num_inference_steps"]:
            message = f"validation_guidance_real begins after {steps} sampler steps, and an image has no more than that."
            yield Problem.note("validation_no_cfg_until_timestep", "no_effect", message, got=steps)
    elif "validation_no_cfg_until_timestep" in family_spec.sampling.options and steps != usual["validation_no_cfg_until_timestep"]:
        yield Problem.note("validation_no_cfg_until_timestep", "no_effect", "validation_guidance_real is 1.", got=steps)


def sizes_fit_the_network(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    try:
        sizes = parse_resolutions(values["validation_resolution"])
    except ValueError:
        return  # told by the rule about sizes
    if family_spec is None:
        return
    multiple = family_spec.sampling.multiple_px
    for width, height in sizes:
        if width % multiple or height % multiple:
            message = f"{family_spec.title} generates edges of multiples of {multiple} pixels: {width}x{height} is no such size."
            rounded = "x".join(str(max(1, round(edge / multiple)) * multiple) for edge in (width, height))
            got = values["validation_resolution"]
            yield Problem.error("validation_resolution", "not_for_family", message, got=got, expected=f"such as {rounded}")


def quality_has_an_effect(values: Values) -> Iterator[Problem]:
    quality = values["validation_image_quality"]
    if values["validation_image_format"] == "png" and quality != REGISTRY["validation_image_quality"].default:
        message = "validation_image_format=png loses nothing: validation_image_quality has no effect."
        yield Problem.note("validation_image_quality", "no_effect", message, got=quality)


VALIDATION_RULES = (
    user_library_is_usable,
    sampler_is_one_of_the_familys,
    family_understands_the_guidance,
    sizes_fit_the_network,
    quality_has_an_effect,
)

"""Rules of validation images: prompts, sampler, guidance and sizes, as the family supports them."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.adapters.validation_adapter import validation_adapter_runs
from trainer_engine.config.control import sees_control_images
from trainer_engine.config.families import find_spec
from trainer_engine.config.option import holds_json
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.options.sizes import parse_resolutions
from trainer_engine.config.prompt_library import DEFAULT, OPTION, built_in_library, parse_prompt_library, same_file_names
from trainer_engine.config.validation_inputs import OPTION as INPUTS
from trainer_engine.config.validation_inputs import parse_validation_inputs
from trainer_engine.contract.errors import Problem, errors_in

ASKING_FOR_SOMETHING = ("validation_guidance_rescale", "validation_guidance_real")
ONLY_TUNING = ("validation_no_cfg_until_timestep", "inference_scheduler_timestep_spacing")
OF_SOME_FAMILIES = (*ASKING_FOR_SOMETHING, *ONLY_TUNING)
"""Options that only families support that name them in ``SamplingSpec.options``."""
UNCONDITIONAL = "unconditional"
PROMPT = "validation"
AVERAGED = "ema"
"""Suffix of the shortname of images generated with the moving average."""
USING_DATASETS, STITCH = "validation_using_datasets", "validation_stitch_input_location"
STARTUP = "startup"
"""Suffix of the shortname of images generated at the start of a run; those of the base model have no suffix."""


def user_library_is_usable(values: Values) -> Iterator[Problem]:
    """Checks a library given as JSON. A library given as a path is read before."""
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
        message = f"{family_spec.title} cannot generate images with the sampler {sampler}."
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
        message = f"The pipeline of {family_spec.title} does not support {name}."
        if name in ASKING_FOR_SOMETHING:
            yield Problem.error(name, "not_for_family", message, got=values[name], expected=f"{usual[name]:g}")
        else:
            yield Problem.note(name, "no_effect", message, got=values[name])
    steps = values["validation_no_cfg_until_timestep"]
    if "validation_guidance_real" in family_spec.sampling.options and values["validation_guidance_real"] > 1:
        if steps >= values["validation_num_inference_steps"]:
            message = f"validation_guidance_real starts after {steps} sampler steps, but an image has no more than that."
            yield Problem.note("validation_no_cfg_until_timestep", "no_effect", message, got=steps)
    elif "validation_no_cfg_until_timestep" in family_spec.sampling.options and steps != usual["validation_no_cfg_until_timestep"]:
        yield Problem.note("validation_no_cfg_until_timestep", "no_effect", "validation_guidance_real is 1.", got=steps)


def validation_sizes_are_sizes(values: Values) -> Iterator[Problem]:
    try:
        parse_resolutions(values["validation_resolution"])
    except ValueError as error:
        expected = "an edge, WIDTHxHEIGHT, or several separated by commas; multiples of 8"
        yield Problem.error("validation_resolution", "not_a_size", f"{error}.", got=values["validation_resolution"], expected=expected)


def sizes_fit_the_network(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    try:
        sizes = parse_resolutions(values["validation_resolution"])
    except ValueError:
        return  # validation_sizes_are_sizes reports it
    if family_spec is None:
        return
    multiple = family_spec.sampling.multiple_px
    for width, height in sizes:
        if width % multiple or height % multiple:
            message = f"{family_spec.title} generates images whose edges are multiples of {multiple} pixels; {width}x{height} is not."
            rounded = "x".join(str(max(1, round(edge / multiple)) * multiple) for edge in (width, height))
            got = values["validation_resolution"]
            yield Problem.error("validation_resolution", "not_for_family", message, got=got, expected=f"such as {rounded}")
        most = family_spec.latents.canvas_px
        if most and width * height > most:
            message = f"{family_spec.title} generates images of {most} pixels at most; {width}x{height} has {width * height}."
            got = values["validation_resolution"]
            yield Problem.error("validation_resolution", "beyond_canvas", message, got=got, expected=f"WIDTH times HEIGHT up to {most}")


def quality_has_an_effect(values: Values) -> Iterator[Problem]:
    quality = values["validation_image_quality"]
    if values["validation_image_format"] == "png" and quality != REGISTRY["validation_image_quality"].default:
        message = "validation_image_format=png is lossless: validation_image_quality has no effect."
        yield Problem.note("validation_image_quality", "no_effect", message, got=quality)


def previews_have_a_decoder(values: Values) -> Iterator[Problem]:
    family_spec = find_spec(str(values.get("model_family", "")))
    if values["validation_preview"] and family_spec is not None and not family_spec.latents.has_previews:
        message = f"{family_spec.title} has no decoder for previews, so images cannot be shown while they are generated."
        yield Problem.error(
            "validation_preview", "no_decoder", message, got=True, expected="false", hint="finished images are still sent as events"
        )


def inputs_fit_the_flavour(values: Values) -> Iterator[Problem]:
    """Checks the inputs of images, and that the network takes inputs."""
    yield from parse_validation_inputs(values[INPUTS])[1]
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None:
        return
    flavour = values.get("model_flavour") or family_spec.default_flavour
    location, default = values[STITCH], REGISTRY[STITCH].default
    if location != default and values["evaluation_type"] != REGISTRY["evaluation_type"].default:
        message = "evaluation_type judges the files of the images, which would show their inputs too."
        yield Problem.error(STITCH, "stitched_scores", message, got=location, expected="none, or evaluation_type=none")
    if family_spec.edits_in_place(flavour) and not values["validation_disable"] and values[USING_DATASETS] is False and not values[INPUTS]:
        message = (
            f"{family_spec.title} {flavour} generates from references alone, and {USING_DATASETS}=false leaves validations without one."
        )
        hint = f"leave {USING_DATASETS} empty to use those of the datasets, or set validation_disable"
        yield Problem.error(USING_DATASETS, "no_reference", message, got=False, expected=f"true, or {INPUTS}", hint=hint)
    if sees_control_images(values) or flavour in family_spec.takes_references or family_spec.animates(flavour):
        return
    for name in (INPUTS, USING_DATASETS):
        if values[name]:
            message = f"{family_spec.title} {flavour} does not take images as inputs."
            yield Problem.error(name, "not_for_family", message, got=values[name], hint="remove it, or choose another model")
    if location != default:
        yield Problem.note(STITCH, "no_effect", f"{family_spec.title} {flavour} takes no images as inputs.", got=location)


RULES: tuple[Rule, ...] = (
    inputs_fit_the_flavour,
    validation_sizes_are_sizes,
    previews_have_a_decoder,
    user_library_is_usable,
    sampler_is_one_of_the_familys,
    family_understands_the_guidance,
    sizes_fit_the_network,
    quality_has_an_effect,
)

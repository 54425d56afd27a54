"""Rules of the options of datasets: sizes and captions."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.contract.errors import Problem

LARGEST_MEGAPIXELS = 5
SMALLEST_PIXEL_EDGE = 64


def sizes_make_sense(values: Values) -> Iterator[Problem]:
    kind = values["resolution_type"]
    if (values["maximum_image_size"] is None) != (values["target_downsample_size"] is None):
        name = "target_downsample_size" if values["target_downsample_size"] is None else "maximum_image_size"
        message = "maximum_image_size and target_downsample_size need each other: the limit, and the size to scale larger images to."
        yield Problem.error(name, "incomplete", message, expected="both or neither")
    for name in ("resolution", "minimum_image_size", "maximum_image_size", "target_downsample_size"):
        value = values[name]
        if not value or (name == "resolution" and value == REGISTRY[name].default):
            continue
        if kind == "area" and value > LARGEST_MEGAPIXELS:
            message = f"{name}={value:g} with resolution_type=area is {value:g} megapixels; it looks like pixels."
            yield Problem.error(name, "looks_like_pixels", message, got=value, expected="megapixels", hint="use resolution_type=pixel_area")
        if kind != "area" and value < SMALLEST_PIXEL_EDGE:
            message = f"{name}={value:g} with resolution_type={kind} is {value:g} pixels; it looks like megapixels."
            yield Problem.error(name, "looks_like_megapixels", message, got=value, expected="pixels", hint="use resolution_type=area")
    if kind == "pixel_area" and values["resolution"] != int(values["resolution"]):
        message = "resolution_type=pixel_area needs a whole number of pixels."
        yield Problem.error("resolution", "not_a_whole_number", message, got=values["resolution"], expected="a whole number")


def instance_prompt_is_given(values: Values) -> Iterator[Problem]:
    wanted_by = [
        f"caption_strategy={values['caption_strategy']}" if values["caption_strategy"] == "instanceprompt" else "",
        "prepend_instance_prompt" if values["prepend_instance_prompt"] else "",
        "only_instance_prompt" if values["only_instance_prompt"] else "",
    ]
    if any(wanted_by) and not values["instance_prompt"]:
        by = " and ".join(word for word in wanted_by if word)
        yield Problem.error("instance_prompt", "missing", f"{by} needs instance_prompt.", expected="the caption")


RULES: tuple[Rule, ...] = (
    sizes_make_sense,
    instance_prompt_is_given,
)

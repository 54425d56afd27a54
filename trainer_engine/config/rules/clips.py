"""Rules of validation clips: their length, as the family generates them, and what is made of their frames."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec as find_module

from trainer_engine.config.families import find_spec
from trainer_engine.config.family_parts import ClipSpec
from trainer_engine.config.options.evaluation import CLIP
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.contract.errors import Level, Problem

FRAMES = "validation_num_video_frames"
MP4_LIBRARY = "av"
"""PyAV, which the extra ``video`` installs."""


def writes_mp4() -> bool:
    """Whether the library that writes mp4 files is installed; it is not imported."""
    return find_module(MP4_LIBRARY) is not None


def frames_of(values: Values) -> int:
    """Frames of each clip; 1 for images."""
    return max(1, values[FRAMES] or 1)


def clips_are_the_familys(values: Values) -> Iterator[Problem]:
    family_spec, frames = find_spec(str(values.get("model_family", ""))), frames_of(values)
    if family_spec is None or frames == 1:
        return
    clips = family_spec.sampling.clips
    if clips is None:
        message = f"{family_spec.title} generates images, not clips."
        yield Problem.error(FRAMES, "not_for_family", message, got=frames, expected="nothing, or 1")
    elif frames not in _nearest(frames, clips):
        message = f"{family_spec.title} generates clips of one frame and a multiple of {clips.stride}; {frames} is not."
        expected = " or ".join(map(str, _nearest(frames, clips)))
        yield Problem.error(FRAMES, "not_for_family", message, got=frames, expected=expected)
    elif frames > clips.trained_frames:
        message = f"{family_spec.title} was trained on clips of at most {clips.trained_frames} frames; longer ones may repeat themselves."
        yield Problem.note(FRAMES, "longer_than_trained", message, got=frames)


def _nearest(frames: int, clips: ClipSpec) -> tuple[int, ...]:
    """The lengths that a family generates next to ``frames``: the one below and the one above, or ``frames`` alone."""
    below = (frames - 1) // clips.stride * clips.stride + 1
    return (frames,) if below == frames else (below, below + clips.stride)


def options_of_images_and_clips(values: Values) -> Iterator[Problem]:
    """Notes on options that have no effect on what is generated."""
    is_clip = frames_of(values) > 1
    if not is_clip and values["framerate"] is not None:
        message = f"{FRAMES} asks for images: framerate has no effect."
        yield Problem.note("framerate", "no_effect", message, got=values["framerate"])
    image_format = values["validation_image_format"]
    if is_clip and image_format != REGISTRY["validation_image_format"].default:
        message = "Clips are written as GIF and mp4 files: validation_image_format has no effect."
        yield Problem.note("validation_image_format", "no_effect", message, got=image_format)


def clips_are_seen_whole(values: Values) -> Iterator[Problem]:
    """Notes on what does not see, or does not keep, a clip in full."""
    refused = any(problem.level is Level.ERROR for problem in clips_are_the_familys(values))
    if frames_of(values) == 1 or values["validation_disable"] or refused:
        return
    if values["evaluation_type"] == CLIP:
        message = "CLIP scores judge the first frame of a clip only."
        yield Problem.note("evaluation_type", "first_frame", message, got=CLIP)
    if not writes_mp4():
        message = "PyAV is not installed: clips are written as GIF files of 256 colours, without mp4 files."
        yield Problem.note(FRAMES, "no_mp4", message, got=values[FRAMES], hint="pip install '.[video]'")


def clips_begin_with_a_frame(values: Values) -> Iterator[Problem]:
    """Checks that clips of a flavour that animates an image have one, and more frames than it."""
    family_spec = find_spec(str(values.get("model_family", "")))
    if family_spec is None or values["validation_disable"] or not family_spec.animates(values.get("model_flavour")):
        return
    flavour = values.get("model_flavour") or family_spec.default_flavour
    if values["validation_using_datasets"] is False and not values["validation_input"]:
        message = f"{family_spec.title} {flavour} animates an image, and validation_using_datasets=false leaves validations without one."
        hint = "leave validation_using_datasets empty to use those of the datasets, or set validation_disable"
        expected = "true, or validation_input"
        yield Problem.error("validation_using_datasets", "no_first_frame", message, got=False, expected=expected, hint=hint)
    if frames_of(values) == 1:
        message = f"{family_spec.title} {flavour} is given the first frame: {FRAMES}=1 shows that frame alone."
        yield Problem.note(FRAMES, "frame_is_given", message, got=values[FRAMES], hint="17 or more frames show motion")


RULES: tuple[Rule, ...] = (clips_are_the_familys, options_of_images_and_clips, clips_are_seen_whole, clips_begin_with_a_frame)

"""Reads ``video``, the lengths of the clips of a set, and refuses sets of clips for models that are trained on images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from trainer_engine.config.datasets.entry import EntryDraft
from trainer_engine.config.datasets.object_fields import LONGEST_CLIP, ClipLength, aligned_frames
from trainer_engine.config.datasets.objects import read_object
from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.family_spec import FamilySpec

FIELD, RATE, FIRST_FRAME = "video", "frame_rate", "is_i2v"
USUAL_SECONDS, USUAL_RATE = 5, 30
"""``num_frames`` of a set that gives none: so many seconds at so many frames a second."""
OF_CLIPS: Mapping[str, Any] = MappingProxyType({"vae_batch_size": 1, "write_batch_size": 1})
"""Defaults that differ from those of images, since clips are large."""


def defaults_of(draft: EntryDraft) -> Mapping[str, Any]:
    """Returns the defaults of a set that differ from those of image sets."""
    return OF_CLIPS if _is_of_clips(draft) else {}


def read_video(draft: EntryDraft, values: Mapping[str, Any]) -> None:
    """Reads the lengths of clips into ``video``; None for a set of images. Lengths are rounded down to those that the family takes.

    ``values`` are the options of the run by name.
    """
    draft.values[FIELD] = None
    if draft.kind == "image" and draft.raw.get(FIELD) not in (None, "", {}):
        what = "video has no effect on a set of type image."
        draft.error(FIELD, "not_for_type", what, hint="set dataset_type to video to train on clips, or remove it")
    if not _is_of_clips(draft):
        return
    spec, framerate = find_spec(str(values["model_family"] or "")), values["framerate"]
    if spec is not None and not spec.clip_media:
        _refuse(draft, spec)
    given = read_object(_without_rate(draft), FIELD, ClipLength)
    if any(field.split(".")[0] == FIELD for field in draft.reported):
        return
    clips = given or ClipLength()
    usual = min(LONGEST_CLIP, max(1, int((framerate or USUAL_RATE) * USUAL_SECONDS)))
    if clips.bucket_strategy == "resolution_frames":
        usual = clips.min_frames or clips.frame_interval or 1  # the least; a longer clip gives as many as it has
    frames = _aligned(draft, clips.num_frames, usual, spec)
    _check(draft, clips, frames, animates=spec is not None and spec.animates(values["model_flavour"]))
    draft.values[FIELD] = clips.model_copy(update={"num_frames": frames, "min_frames": clips.min_frames or frames})


def _without_rate(draft: EntryDraft) -> EntryDraft:
    """Returns the entry without ``frame_rate`` of ``video``, which is a note: files have rates of their own."""
    given = draft.raw.get(FIELD)
    if not isinstance(given, Mapping) or RATE not in given:
        return draft
    what = f"{FIELD}.{RATE} has no effect: frames are trained on as they are stored, whatever their rate is."
    draft.note(f"{FIELD}.{RATE}", "no_effect", what, got=given[RATE])
    return replace(draft, raw={**draft.raw, FIELD: {name: value for name, value in given.items() if name != RATE}})


def _is_of_clips(draft: EntryDraft) -> bool:
    """Whether a set holds clips: an eval set does if it has their lengths."""
    return draft.kind == "video" or (draft.kind == "eval" and draft.raw.get(FIELD) not in (None, "", {}))


def _refuse(draft: EntryDraft, spec: FamilySpec) -> None:
    families = ", ".join(name for name, one in specs().items() if one.clip_media)
    hint = f"train a model of clips ({families}), or save frames as images and set dataset_type to image"
    what = f"{spec.title} is trained on images, not on clips."
    draft.error("dataset_type" if draft.kind == "video" else FIELD, "not_for_family", what, got=draft.kind, expected="image", hint=hint)


def _aligned(draft: EntryDraft, asked: int | None, usual: int, spec: FamilySpec | None) -> int:
    """Returns the frames that are trained on, and notes a number that the family does not take, or was not trained with."""
    stride, frames = spec.frame_stride if spec else 1, asked or usual
    aligned = aligned_frames(frames, stride)
    if spec is None:
        return aligned
    if asked and aligned != asked:
        what = f"{spec.title} takes clips of one frame and a multiple of {stride}: {aligned} of {asked} frames are trained on."
        draft.note(f"{FIELD}.num_frames", "rounded_for_family", what, got=asked)
    longest = spec.sampling.clips.trained_frames if spec.sampling.clips else aligned
    if aligned > longest:
        what = f"its clips have {aligned} frames; {spec.title} was trained on at most {longest}, and memory grows with each."
        draft.note(f"{FIELD}.num_frames", "longer_than_trained", what, got=aligned)
    return aligned


def _check(draft: EntryDraft, clips: ClipLength, frames: int, *, animates: bool) -> None:
    """Reports lengths that leave no clip, and keys without an effect. ``animates``: the network is given the first frame of a clip."""
    if clips.min_frames is not None and clips.min_frames < frames:
        what = f"min_frames={clips.min_frames} is below num_frames={frames}: a clip with fewer frames cannot be trained on."
        draft.error(f"{FIELD}.min_frames", "too_few_frames", what, got=clips.min_frames, expected=f"at least {frames}, or empty")
    least = clips.min_frames or frames
    if clips.max_frames is not None and clips.max_frames < least:
        what = f"max_frames={clips.max_frames} is below the {least} frames that a clip must have: no clip fits."
        draft.error(f"{FIELD}.max_frames", "empty_range", what, got=clips.max_frames, expected=f"at least {least}, or empty")
    if clips.frame_interval is not None and clips.bucket_strategy != "resolution_frames":
        what = "frame_interval has no effect without bucket_strategy=resolution_frames: every clip has num_frames."
        draft.note(f"{FIELD}.frame_interval", "no_effect", what, got=clips.frame_interval)
    if animates is not clips.is_i2v and FIRST_FRAME in (draft.raw.get(FIELD) or ()):
        known = "is always given the first frame" if animates else "is given the prompt alone, not a first frame"
        draft.note(f"{FIELD}.{FIRST_FRAME}", "no_effect", f"{FIRST_FRAME} has no effect: this model {known}.", got=clips.is_i2v)

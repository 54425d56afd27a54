"""Checks of the datasets of a model that is given the first frame of each clip and learns how the clip goes on."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.datasets import Dataloader, ImageSet
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.contract.errors import Problem

FIELD = "dataset_type"


def first_frame_problems(dataloader: Dataloader, options: TrainingOptions, spec: FamilySpec) -> Iterator[Problem]:
    """Yields an error if no set holds clips, and a warning for each set of stills beside sets of clips.

    Of a still image the network is given all that it is to predict, so stills alone teach it to copy.
    """
    flavour = options.model.model_flavour or spec.default_flavour
    if not spec.animates(flavour):
        return
    trained = [entry for entry in dataloader.image_sets if entry.is_trained]
    stills = [entry for entry in trained if not _goes_on(entry)]
    hint = "set dataset_type to video, and num_frames of video above 1"
    if stills and len(stills) == len(trained):
        message = f"{spec.title} {flavour} is given the first frame of a clip and learns the others, but no set holds clips."
        yield Problem.error(stills[0].option(FIELD), "clips_needed", message, got="images", expected="video", hint=hint)
        return
    for entry in stills:
        message = f"dataset {entry.id} holds stills: {spec.title} {flavour} is given the whole of each, and learns little but to copy it."
        yield Problem.warning(entry.option(FIELD), "frame_is_given", message, got="images", hint=hint)


def _goes_on(entry: ImageSet) -> bool:
    """Whether the clips of a set have more than their first frame."""
    return entry.video is not None and (entry.video.frames > 1 or entry.video.bucket_strategy == "resolution_frames")

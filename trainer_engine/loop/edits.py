"""The inputs of validation images: pairs and first frames of the datasets, and images that the options name."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from trainer_engine.batches.batch import captions_of
from trainer_engine.caches.latents import LatentCache
from trainer_engine.caches.prompts import PromptCache
from trainer_engine.datasets.crops import crop_window, load_frames
from trainer_engine.datasets.samples import Sample, reference_cache
from trainer_engine.datasets.validation_inputs import PlannedInput
from trainer_engine.validation.generate import Edit
from trainer_engine.validation.names import name_after


def shown_caption(sample: Sample) -> str:
    """The caption of a sample that is shown with all of its references."""
    return captions_of(sample, range(len(sample.references)))[0]


def edit_of_pair(set_id: str, sample: Sample, latents: Mapping[str, LatentCache], prompts: PromptCache, seed: int) -> Edit:
    """An image of the set ``set_id`` with its references, as an input of validations. ``seed`` places random crops."""
    references = [one.sample for one in sample.references]

    def read() -> tuple[Tensor, ...]:
        return tuple(latents[reference_cache(set_id, one.set)].read(one.sample) for one in sample.references)

    seen = references if prompts.family.prompts_see_references else []
    return Edit(
        name=name_after(sample.name),
        caption=shown_caption(sample),
        read_references=read,
        read_prompt=lambda text: prompts.read(text, seen),
        read_images=lambda: [_picture(reference, seed) for reference in references],
    )


def edit_of_frame(sample: Sample, prompts: PromptCache, seed: int) -> Edit:
    """The first frame of a sample, as an input of validations. ``seed`` places random crops."""
    return Edit(
        name=name_after(sample.name),
        caption=shown_caption(sample),
        read_references=tuple,
        read_prompt=prompts.read,
        read_images=lambda: [_picture(sample, seed)],
    )


def edit_of_input(planned: PlannedInput, latents: LatentCache, prompts: PromptCache, seed: int) -> Edit:
    sample = planned.sample
    seen = [sample] if prompts.family.prompts_see_references else []
    return Edit(
        name=name_after(planned.input.shortname or sample.name),
        caption=planned.input.prompt,
        read_references=lambda: (latents.read(sample),),
        read_prompt=lambda text: prompts.read(text, seen),
        read_images=lambda: [_picture(sample, seed)],
        has_own_prompt=True,
    )


def _picture(sample: Sample, seed: int) -> Image.Image:
    """The part of an image that the network sees; of a clip its first frame. Raises BrokenImage."""
    return next(load_frames(sample, crop_window(sample, seed)))

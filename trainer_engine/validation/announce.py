"""How images are announced: finished ones, and previews of those that are being generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer_engine.config.options.validation import ValidationOptions
from trainer_engine.contract.events import ImageEvent
from trainer_engine.families.base import Family
from trainer_engine.families.generation import SamplerStep
from trainer_engine.media import attachments, write_picture
from trainer_engine.runtime.events import EventSink
from trainer_engine.validation.failures import SURVIVED
from trainer_engine.validation.generate import SampledImage, ValidationImage
from trainer_engine.validation.previews import Decoder, decoder_of, is_shown, no_previews

BASE_MODEL = "base_model"
FINISHED = "final"
INTERMEDIARY = "intermediary"
"""What events call an image of the base model, a finished one of any other validation, and a preview."""


@dataclass
class Announcer:
    """Turns images into events."""

    sink: EventSink
    options: ValidationOptions
    family: Family
    media: Path
    """Folder of previews."""
    _previews_failed: bool = False

    def emit(self, image: ValidationImage, global_step: int, kind: str, *, taken: SamplerStep | None = None) -> None:
        """``taken``: the sampler step that a preview shows."""
        step = taken.number if taken else image.sampler_steps
        label = f"{step}/{image.sampler_steps}"
        self.sink.emit(
            ImageEvent(
                title=f"Validation (step {label}): {image.shortname}",
                message=f"Validation (step {label}): {image.shortname}",
                body=image.prompt,
                step=step,
                timestep=taken.timestep if taken else None,
                global_step=global_step,
                resolution=image.resolution,
                validation_type=kind,
                prompt=image.prompt,
                step_label=label,
                **attachments(image.path, image.video),
            )
        )

    def previews(self, global_step: int) -> Callable[[SampledImage], None] | None:
        """What shows the sampler's steps of one validation; None where they are not to be shown, or could not be."""
        if not self.options.validation_preview or self._previews_failed:
            return None
        decoder = decoder_of(self.family)
        return lambda sampled: self._preview(decoder, sampled, global_step)

    def _preview(self, decoder: Decoder, sampled: SampledImage, global_step: int) -> None:
        """Show what there is of an image. Where it cannot be shown, the run says so once and goes on without previews."""
        image, taken = sampled.image, sampled.taken
        if self._previews_failed or not is_shown(taken.number, image.sampler_steps, self.options):
            return
        try:
            picture = decoder.decode(taken.latents)
            path = write_picture(self.media, f"{image.path.stem}_{taken.number}of{image.sampler_steps}", picture)
        except SURVIVED as error:
            self._previews_failed = True
            self.sink.emit(no_previews(decoder.name, error))
            return
        self.emit(dataclasses.replace(image, path=path), global_step, INTERMEDIARY, taken=taken)

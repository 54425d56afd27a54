from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer_engine.adapters.base import Trainable
from trainer_engine.caches.prompts import PromptCache
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.events import ErrorEvent, ImageEvent, Severity, StageKey
from trainer_engine.contract.options import TrainingOptions
from trainer_engine.ema import MovingAverage
from trainer_engine.families.base import Family, SamplerStep
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.callbacks.external_validation import ExternalValidation
from trainer_engine.loop.stages import Advance, Stages
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.pictures import attachments, write_picture
from trainer_engine.previews import PreviewDecoder, is_shown, no_previews
from trainer_engine.processes import Processes
from trainer_engine.stopping import Requests
from trainer_engine.validation import Edit, SampledImage, ValidationImage, render, validation_prompts

BASE_MODEL = "base_model"
FINISHED = "final"
INTERMEDIARY = "intermediary"
"""What events call a finished image of any validation."""


@dataclass
class Validating(Callback):
    """Draws with the base model, at the interval, when asked to, and with the result."""

    showing: Callable[[], AbstractContextManager[None]]
    """Puts the weights that the optimizer means into place."""
    options: TrainingOptions
    family: Family
    trainable: Trainable
    average: MovingAverage | None
    prompts: PromptCache
    edits: Sequence[Edit]
    stages: Stages
    processes: Processes
    requests: Requests
    media: Path
    """Folder of previews."""
    external: ExternalValidation | None = None
    """Validates instead, but for the base model's images."""
    _previews_failed: bool = False

    def before_training(self, state: TrainState) -> None:
        if not state.step and not self.options.validation.disable_benchmark:
            self._draw(state, StageKey.BENCHMARK_BASE_MODEL, BASE_MODEL)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        if state.should_stop or state.is_finished:
            return
        if state.validation_asked or state.step % self.options.validation.validation_step_interval == 0:
            state.validation_asked = False
            self._draw(state, StageKey.VALIDATION, FINISHED)

    def after_training(self, state: TrainState) -> None:
        if state.is_finished:
            self._draw(state, StageKey.FINAL_VALIDATION, FINISHED)

    def _draw(self, state: TrainState, key: StageKey, kind: str) -> None:
        if self.external is not None and kind != BASE_MODEL:
            self.external.run(state, key)
            return
        if not (validation_prompts(self.options) or self.edits):
            return
        with state.timed("validation"), self.processes.first_alone() as is_first:
            if is_first:
                try:
                    with self.stages.stage(key) as advance:
                        self._draw_all(state, kind, advance)
                except torch.OutOfMemoryError as error:
                    # Images are for people to look at; the run is worth more than they are.
                    message = f"The images of step {state.step} did not fit into the device's memory: {error}"
                    hint = "lower validation_resolution; training goes on"
                    self.stages.voice.tell(
                        ErrorEvent(code="validation_out_of_memory", message=message, hint=hint, severity=Severity.WARNING)
                    )
                    self.family.free_encoders()

    def _draw_all(self, state: TrainState, kind: str, advance: Advance) -> None:
        passes, decoder = self._passes(kind), self._decoder()
        for number, (label, weights) in enumerate(passes):
            strength = 0.0 if kind == BASE_MODEL else self.options.validation.validation_lycoris_strength
            with self.showing(), weights(), self.trainable.at_strength(strength):
                render(
                    self.family,
                    self.trainable.network,
                    self.prompts.read,
                    self.options,
                    state.step,
                    edits=self.edits,
                    label=label,
                    on_image=lambda image: self._announce(image, state, kind),
                    on_sampler_step=(lambda drawn: self._preview(decoder, drawn, state)) if decoder else None,
                    on_progress=lambda done, total, before=number: advance(before * total + done, total * len(passes)),
                    should_stop=self.requests.stop_asked,
                )

    def _decoder(self) -> PreviewDecoder | None:
        if not self.options.validation.validation_preview or self._previews_failed:
            return None
        return PreviewDecoder(self.family.card.preview_decoder, self.family.devices)

    def _preview(self, decoder: PreviewDecoder, drawn: SampledImage, state: TrainState) -> None:
        """Show what there is of an image. Where it cannot be shown, the run says so once and goes on without previews."""
        image, taken = drawn.image, drawn.taken
        if self._previews_failed or not is_shown(taken.number, image.sampler_steps, self.options.validation):
            return
        try:
            picture = decoder.decode(taken.latents)
        except (ModelUnavailable, RuntimeError) as error:
            self._previews_failed = True
            self.stages.voice.tell(no_previews(decoder.repository, error))
            return
        name = f"{image.path.stem}_{taken.number}of{image.sampler_steps}"
        shown = dataclasses.replace(image, path=write_picture(self.media, name, picture))
        self._announce(shown, state, INTERMEDIARY, taken=taken)

    def _passes(self, kind: str) -> list[tuple[str, Callable[[], AbstractContextManager[object]]]]:
        """(label, what puts the weights into place): live, averaged, or both, as ``ema_validation`` says."""
        wanted = self.options.validation.ema_validation
        if self.average is None or wanted == "none" or kind == BASE_MODEL:
            return [("", nullcontext)]
        averaged = [("ema", self.average.in_place)]
        return averaged if wanted == "ema_only" else [("", nullcontext), *averaged]

    def _announce(self, image: ValidationImage, state: TrainState, kind: str, *, taken: SamplerStep | None = None) -> None:
        step = taken.number if taken else image.sampler_steps
        label = f"{step}/{image.sampler_steps}"
        self.stages.voice.tell(
            ImageEvent(
                title=f"Validation (step {label}): {image.shortname}",
                message=f"Validation (step {label}): {image.shortname}",
                body=image.prompt,
                step=step,
                timestep=taken.timestep if taken else None,
                global_step=state.step,
                resolution=image.resolution,
                validation_type=kind,
                prompt=image.prompt,
                step_label=label,
                **attachments(image.path),
            )
        )

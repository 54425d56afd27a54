from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from trainer_engine.adapters.base import Trainable
from trainer_engine.caches.prompts import PromptCache
from trainer_engine.contract.errors import ModelUnavailable
from trainer_engine.contract.events import ErrorEvent, ImageEvent, Notification, Severity, StageKey
from trainer_engine.contract.options import TrainingOptions
from trainer_engine.contract.options.validation import ValidationOptions
from trainer_engine.contract.options.validation_rules import AVERAGED, STARTUP
from trainer_engine.drawing_failures import DrawingFailed
from trainer_engine.ema import MovingAverage
from trainer_engine.families.base import Family, SamplerStep
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.occasions import Moment, Occasion, after_step, at_end, at_start
from trainer_engine.loop.stages import Advance, Stages
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.out_of_memory import out_of_memory_numbers, ran_out_of_memory
from trainer_engine.pictures import attachments, write_picture
from trainer_engine.previews import PreviewDecoder, is_shown, no_previews
from trainer_engine.processes import Processes
from trainer_engine.stopping import Requests
from trainer_engine.validation import Edit, SampledImage, ValidationImage, ValidationPrompt, render, validation_prompts

BASE_MODEL = "base_model"
FINISHED = "final"
INTERMEDIARY = "intermediary"
"""What events call a finished image of any validation."""
STAGES: Mapping[Occasion, StageKey] = MappingProxyType(
    {Occasion.BASE_MODEL: StageKey.BENCHMARK_BASE_MODEL, Occasion.RESULT: StageKey.FINAL_VALIDATION}
)
"""Every other one is a validation like any other."""


@dataclass
class Validating(Callback):
    """Draws when an occasion comes (``loop/occasions.py``), and announces what was drawn."""

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
    _previews_failed: bool = False

    def before_training(self, state: TrainState) -> None:
        for occasion in at_start(self.options.validation, _moment(state)):
            self._validate(state, occasion)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        occasion = after_step(self.options.validation, _moment(state), asked=state.validation_asked)
        if occasion is not None:
            state.validation_asked = False
            self._validate(state, occasion)

    def after_training(self, state: TrainState) -> None:
        occasion = at_end(_moment(state))
        if occasion is not None:
            self._validate(state, occasion)

    def _validate(self, state: TrainState, occasion: Occasion) -> None:
        """What keeps images from being drawn is a warning."""
        if not (validation_prompts(self.options) or self.edits):
            if occasion is Occasion.ASKED:
                self.stages.voice.tell(_nothing_to_draw(self.options.validation))
            return
        with state.timed("validation"), self.processes.first_alone() as is_first:
            if is_first:
                failure = self._try_to_draw(state, occasion)
                if failure is not None:
                    # Once more: only now has the failure let go of what it was about.
                    self.family.free_encoders()
                    self.stages.voice.tell(failure)

    def _try_to_draw(self, state: TrainState, occasion: Occasion) -> ErrorEvent | None:
        try:
            with self.stages.stage(STAGES.get(occasion, StageKey.VALIDATION), failure=Severity.WARNING) as advance:
                self._draw_all(state, occasion, advance)
        except DrawingFailed as failed:
            numbers = out_of_memory_numbers(self.family.devices.device) if ran_out_of_memory(failed.reason) else ""
            return failed.as_event(state.step, numbers)
        return None

    def _draw_all(self, state: TrainState, occasion: Occasion, advance: Advance) -> None:
        kind = BASE_MODEL if occasion is Occasion.BASE_MODEL else FINISHED
        passes, decoder = self._passes(state, occasion), self._decoder()
        for number, (label, weights) in enumerate(passes):
            with self.showing(), weights():
                render(
                    self.family,
                    self.trainable.network,
                    self.prompts.read,
                    self.options,
                    state.step,
                    edits=self.edits,
                    label=label,
                    weights_for=lambda prompt: self.trainable.at_strength(self._strength(prompt, occasion)),
                    on_image=lambda image: self._announce(image, state, kind),
                    on_sampler_step=(lambda drawn: self._preview(decoder, drawn, state)) if decoder else None,
                    on_progress=lambda done, total, before=number: advance(before * total + done, total * len(passes)),
                    should_stop=self.requests.stop_asked,
                )

    def _strength(self, prompt: ValidationPrompt, occasion: Occasion) -> float:
        if occasion is Occasion.BASE_MODEL:
            return 0.0
        usual = self.options.validation.validation_lycoris_strength
        return usual if prompt.adapter_strength is None else prompt.adapter_strength

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
            name = f"{image.path.stem}_{taken.number}of{image.sampler_steps}"
            shown = dataclasses.replace(image, path=write_picture(self.media, name, picture))
        except (ModelUnavailable, RuntimeError, OSError) as error:
            self._previews_failed = True
            self.stages.voice.tell(no_previews(decoder.repository, error))
            return
        self._announce(shown, state, INTERMEDIARY, taken=taken)

    def _passes(self, state: TrainState, occasion: Occasion) -> list[tuple[str, Callable[[], AbstractContextManager[object]]]]:
        """(label, what puts the weights into place): live, averaged, or both, as ``ema_validation`` says."""
        wanted, base_model = self.options.validation.ema_validation, Occasion.BASE_MODEL
        # Images of the base model, where there are any, have the plain names of step 0.
        taken = occasion is Occasion.STARTUP and base_model in at_start(self.options.validation, _moment(state))
        live = STARTUP if taken else ""
        if self.average is None or wanted == "none" or occasion is base_model:
            return [(live, nullcontext)]
        averaged = [(AVERAGED, self.average.in_place)]
        return averaged if wanted == "ema_only" else [(live, nullcontext), *averaged]

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


def _moment(state: TrainState) -> Moment:
    return Moment(state.step, state.epoch, state.ends_epoch, state.is_finished, state.should_stop)


def _nothing_to_draw(validation: ValidationOptions) -> Notification:
    reason = "validation_disable is set" if validation.validation_disable else "there is no prompt"
    hint = "set validation_disable=false" if validation.validation_disable else "set validation_prompt or user_prompt_library"
    message = f"A validation was asked for, and there is nothing to draw: {reason}. For the next run: {hint}."
    return Notification(code="nothing_to_draw", title="Nothing to draw", message=message, severity=Severity.WARNING)

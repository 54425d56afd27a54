from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType

from trainer_engine.adapters.base import Trainable
from trainer_engine.adapters.validation_adapter import ValidationAdapter
from trainer_engine.caches.prompts import PromptCache
from trainer_engine.config.adapters.validation_adapter import COMPARISON
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.validation import ValidationOptions
from trainer_engine.config.rules.validation import AVERAGED, STARTUP
from trainer_engine.contract.events import ErrorEvent, Notification, Severity, StageKey
from trainer_engine.families.base import Family
from trainer_engine.loop.callbacks.base import Callback
from trainer_engine.loop.callbacks.clip_scoring import ClipScoring
from trainer_engine.loop.callbacks.hooks import ExternalValidation
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.optim.ema import MovingAverage
from trainer_engine.runtime.control import ControlRequests
from trainer_engine.runtime.devices import out_of_memory_numbers, ran_out_of_memory
from trainer_engine.runtime.distributed import Processes
from trainer_engine.runtime.groups import Group
from trainer_engine.runtime.stages import Advance, Stages, advance_in_part
from trainer_engine.validation.announce import BASE_MODEL, FINISHED, Announcer
from trainer_engine.validation.failures import GenerationFailed
from trainer_engine.validation.gather import GeneratedImages, pack_or_say, unpack
from trainer_engine.validation.generate import Edit, ValidationImage, ValidationPrompt, render, validation_prompts
from trainer_engine.validation.triggers import Trigger, TriggerState, after_step, at_end, at_start

STAGES: Mapping[Trigger, StageKey] = MappingProxyType(
    {Trigger.BASE_MODEL: StageKey.BENCHMARK_BASE_MODEL, Trigger.RESULT: StageKey.FINAL_VALIDATION}
)
"""Every other one is a validation like any other."""


Pass = tuple[str, Callable[[], AbstractContextManager[object]]]
"""(label of the images, context manager that puts their weights into place)"""


@dataclass
class ValidationCallback(Callback):
    """Generates images when a trigger of ``validation/triggers.py`` fires, and announces them."""

    showing: Callable[[], AbstractContextManager[None]]
    """Puts the weights that the optimizer means into place."""
    options: TrainingOptions
    family: Family
    trainable: Trainable
    average: MovingAverage | None
    prompts: PromptCache
    edits: Sequence[Edit]
    eval_prompts: Sequence[ValidationPrompt]
    stages: Stages
    processes: Processes
    requests: ControlRequests
    on_validated: Callable[[TrainState], None]
    """Called at the end of each validation."""
    announcer: Announcer
    external: ExternalValidation | None = None
    """Validates instead, but for the base model's images."""
    validation_adapters: Sequence[ValidationAdapter] = ()
    """Adapters that images are generated with in turn; those of the base model are generated without them."""
    scoring: ClipScoring | None = None

    def before_training(self, state: TrainState) -> None:
        for trigger in at_start(self.options.validation, _moment(state)):
            self._validate(state, trigger)
            self.on_validated(state)

    def after_step(self, state: TrainState, outcome: StepOutcome) -> None:
        trigger = after_step(self.options.validation, _moment(state), asked=state.validation_asked)
        if trigger is not None:
            state.validation_asked = False
            self._validate(state, trigger)
            self.on_validated(state)

    def after_training(self, state: TrainState) -> None:
        trigger = at_end(_moment(state))
        if trigger is not None:
            self._validate(state, trigger)
            self.on_validated(state)

    def _validate(self, state: TrainState, trigger: Trigger) -> None:
        """A failure to generate images is a warning."""
        if self.external is not None and trigger is not Trigger.BASE_MODEL:
            self.external.run(state, STAGES.get(trigger, StageKey.VALIDATION))
            return
        if not (validation_prompts(self.options) or self.edits or self.eval_prompts):
            if trigger is Trigger.ASKED:
                self.stages.sink.emit(_nothing_to_generate(self.options.validation))
            return
        with state.timed("validation"):
            generated = self._try_to_generate(state, trigger) if self._generates else GeneratedImages()
            if generated.failure is not None:
                # Once more: only now has the failure let go of what it was about.
                self.family.free_encoders()
                self.stages.sink.emit(generated.failure)
            images = [*generated.images, *self._receive_from_others(generated, state, trigger)]
            if self.scoring is not None:
                self.scoring.score(images, state)

    @property
    def _generates(self) -> bool:
        """Whether this process generates images at all."""
        return self.processes.together.index == 0 or self.options.validation.validation_multigpu == "batch-parallel"

    @property
    def _group(self) -> Group:
        """The processes that generate an image together, among those that share the images."""
        alone = self.options.validation.validation_multigpu == "single-gpu"
        return replace(self.processes.together, index=0, count=1) if alone else self.processes.together

    def _receive_from_others(self, generated: GeneratedImages, state: TrainState, trigger: Trigger) -> list[ValidationImage]:
        """All wait for the last here; the first one says what the others drew, and gets it."""
        # The first process of a group speaks for all of it: its images are there once, and so are its failures.
        said = generated if self.processes.together.is_first else GeneratedImages()
        everything = self.processes.gather(b"" if self.processes.is_first else pack_or_say(said, state.step))
        images: list[ValidationImage] = []
        for packed in everything[1:] if self.processes.is_first else []:
            try:
                other = unpack(packed)
            except OSError as error:
                other = GeneratedImages(failure=GenerationFailed("", "", error).as_event(state.step))
            images += other.images
            for image in other.images:
                self.announcer.emit(image, state.step, _kind(trigger))
            if other.failure is not None:
                self.stages.sink.emit(other.failure)
        return images

    def _try_to_generate(self, state: TrainState, trigger: Trigger) -> GeneratedImages:
        images: list[ValidationImage] = []
        try:
            with self.stages.stage(STAGES.get(trigger, StageKey.VALIDATION), failure=Severity.WARNING) as advance:
                self._generate_all(state, trigger, advance, images.append)
        except GenerationFailed as failed:
            return GeneratedImages(images, self._told(failed, state))
        except (RuntimeError, MemoryError) as error:
            # The average and the weights that a schedule-free optimizer means need room beside the live ones.
            if self.processes.together.size > 1 or not ran_out_of_memory(error):
                raise
            return GeneratedImages(images, self._told(GenerationFailed("", "", error), state))
        return GeneratedImages(images)

    def _told(self, failed: GenerationFailed, state: TrainState) -> ErrorEvent:
        numbers = out_of_memory_numbers(self.family.devices.device) if ran_out_of_memory(failed.reason) else ""
        return failed.as_event(state.step, numbers)

    def _generate_all(self, state: TrainState, trigger: Trigger, advance: Advance, keep: Callable[[ValidationImage], None]) -> None:
        passes = self._passes(state, trigger)
        previews = self.announcer.previews(state.step) if self.processes.is_first else None

        def finished(image: ValidationImage) -> None:
            keep(image)
            self.announcer.emit(image, state.step, _kind(trigger))

        for number, (label, weights) in enumerate(passes):
            if self._group.any_of(self.requests.stop_asked()):
                return  # before weights are put into place and an autoencoder is loaded for nothing
            with self.showing(), weights():
                render(
                    self.family,
                    self.trainable.network,
                    self.prompts.read,
                    self.options,
                    state.step,
                    edits=self.edits,
                    eval_prompts=self.eval_prompts,
                    label=label,
                    group=self._group,
                    weights_for=lambda prompt: self.trainable.at_strength(self._strength(prompt, trigger)),
                    on_image=finished,
                    on_sampler_step=previews,
                    on_progress=advance_in_part(advance, number, len(passes)),
                    should_stop=self.requests.stop_asked,
                )

    def _strength(self, prompt: ValidationPrompt, trigger: Trigger) -> float:
        if trigger is Trigger.BASE_MODEL:
            return 0.0
        usual = self.options.validation.validation_lycoris_strength
        return usual if prompt.adapter_strength is None else prompt.adapter_strength

    def _passes(self, state: TrainState, trigger: Trigger) -> list[Pass]:
        """The passes of the weights, each with the validation adapters in turn, or without and with them (``validation_adapter_mode``)."""
        passes = self._passes_of_weights(state, trigger)
        if not self.validation_adapters or trigger is Trigger.BASE_MODEL:
            return passes
        compares = self.options.validation.validation_adapter_mode == COMPARISON
        return [
            one
            for bare in passes
            for one in ([bare] if compares else [])
            + [_with_validation_adapters(bare, validation_adapter) for validation_adapter in self.validation_adapters]
        ]

    def _passes_of_weights(self, state: TrainState, trigger: Trigger) -> list[Pass]:
        """Live, averaged, or both, as ``ema_validation`` says."""
        wanted, base_model = self.options.validation.ema_validation, Trigger.BASE_MODEL
        # Images of the base model, where there are any, have the plain names of step 0.
        taken = trigger is Trigger.STARTUP and base_model in at_start(self.options.validation, _moment(state))
        live = STARTUP if taken else ""
        if self.average is None or wanted == "none" or trigger is base_model:
            return [(live, nullcontext)]
        averaged: list[Pass] = [(AVERAGED, self.average.in_place)]
        return averaged if wanted == "ema_only" else [(live, nullcontext), *averaged]


def _with_validation_adapters(bare: Pass, validation_adapter: ValidationAdapter) -> Pass:
    """The same weights with an adapter beside them."""
    label, weights = bare

    @contextmanager
    def both() -> Iterator[None]:
        with weights(), validation_adapter.attached():
            yield

    return "_".join(part for part in (label, validation_adapter.label) if part), both


def _kind(trigger: Trigger) -> str:
    return BASE_MODEL if trigger is Trigger.BASE_MODEL else FINISHED


def _moment(state: TrainState) -> TriggerState:
    return TriggerState(state.step, state.epoch, state.ends_epoch, state.is_finished, state.should_stop)


def _nothing_to_generate(validation: ValidationOptions) -> Notification:
    reason = "validation_disable is set" if validation.validation_disable else "there is no prompt"
    hint = "set validation_disable=false" if validation.validation_disable else "set validation_prompt or user_prompt_library"
    message = f"A validation was requested, and there is nothing to generate: {reason}. For the next run: {hint}."
    return Notification(code="nothing_to_draw", title="Nothing to generate", message=message, severity=Severity.WARNING)

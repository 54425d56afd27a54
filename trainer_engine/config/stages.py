"""Two networks that share the noise schedule: which of them a run trains, and where the other one of its validation images is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainer_engine.config.components import model_sources
from trainer_engine.config.families import find_spec, specs
from trainer_engine.config.family_parts import FULL_PIPELINE, StagesSpec
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.options.model import ModelOptions
from trainer_engine.contract.errors import Problem

USUAL_TIMESTEPS = 1000
ALIKE = ("in_channels", "out_channels", "caption_channels")
"""Settings that two networks have in common which pass an image on; all but the first only where one pipeline asks both."""


@dataclass(frozen=True)
class OtherStage:
    """The network of a pair that a run does not train."""

    option: str
    """The option that names its weights."""
    model: ModelOptions
    """Its own weights; nothing of the trained network's but settings of the text encoders."""
    is_first: bool
    """Whether it has the part of the schedule with the most noise."""
    split: float
    """Share of the schedule, from its beginning with noise, that belongs to the first network: in (0, 1)."""

    @property
    def name(self) -> str:
        """The repository or folder of its weights."""
        return str(self.model.pretrained_model_name_or_path)


def model_options() -> tuple[str, ...]:
    """The options of all families that name the weights of the other network of a pair."""
    return tuple(name for spec in specs().values() if spec.stages for name in spec.stages.models)


def uses_both(values: Mapping[str, Any]) -> bool:
    """Whether the options ask for validation images by both networks of a pair."""
    spec = find_spec(str(values.get("model_family", "")))
    return spec is not None and spec.stages is not None and values[spec.stages.mode] == FULL_PIPELINE


def trained_stage(values: Mapping[str, Any], stages: StagesSpec, flavour: str) -> Literal[1, 2] | None:
    """The network of a pair that a run trains: by its part of the schedule, or else by its flavour. None if it trains neither."""
    if values["refiner_training"]:
        return 1 if values["refiner_training_invert_schedule"] else 2
    if flavour in stages.flavours.values():
        return 2
    return 1 if flavour in stages.flavours else None


def other_flavour(stages: StagesSpec, flavour: str, trained: Literal[1, 2]) -> str:
    """The flavour of the network beside the trained one."""
    if trained == 1:
        return stages.flavours.get(flavour, stages.flavours[stages.usual])
    return next((first for first, second in stages.flavours.items() if second == flavour), stages.usual)


def other_stage(options: TrainingOptions, spec: FamilySpec) -> OtherStage | None:
    """The other network of the run's validation images, or None if they are made by the trained network alone."""
    stages, values, strength = spec.stages, options.as_values(), options.objective.refiner_training_strength
    if stages is None or values[stages.mode] != FULL_PIPELINE or options.validation.validation_disable or options.model.sees_control:
        return None
    flavour = options.model.model_flavour or spec.default_flavour
    trained = trained_stage(values, stages, flavour)
    if trained is None or not 0 < strength < 1:
        return None
    option, beside = stages.models[0 if trained == 2 else 1], other_flavour(stages, flavour, trained)
    own = ModelOptions(
        model_family=options.model.model_family,
        model_type="lora",  # it is frozen
        model_flavour=beside,
        pretrained_model_name_or_path=values[option] or spec.repository(beside),
        variant=options.model.variant,
        clip_skip=options.model.clip_skip,
        tokenizer_max_length=options.model.tokenizer_max_length,
        gradient_checkpointing=False,
    )
    return OtherStage(option, own, is_first=trained == 2, split=1 - strength)


def run_sources(options: TrainingOptions, spec: FamilySpec) -> dict[str, str]:
    """``model_sources``, and the other network of validation images."""
    other = other_stage(options, spec)
    return {**model_sources(options.model, spec), **({other.option: other.name} if other else {})}


@dataclass(frozen=True)
class NetworkFacts:
    """What the files of a base model say about its network."""

    scheduler: Mapping[str, Any]
    """The content of ``scheduler_config.json``."""
    network: Mapping[str, Any]
    """The content of the network's ``config.json``."""
    prediction_type: str
    """What it predicts."""


def mismatch(stage: OtherStage, stages: StagesSpec, own: NetworkFacts, other: NetworkFacts) -> Problem | None:
    """The problem of two networks that cannot pass an image on, or None. ``own``: of the trained one."""

    def problem(code: str, fact: str, ours: object, theirs: object) -> Problem:
        message = f"{stage.name} has {fact} {theirs}, and the trained network {ours}: validation images cannot be made by both."
        return Problem.error(stage.option, code, message, got=stage.name, expected=f"a network with {fact} {ours}")

    steps, others = (facts.scheduler.get("num_train_timesteps", USUAL_TIMESTEPS) for facts in (own, other))
    if steps != others:
        return problem("other_schedule", "num_train_timesteps", steps, others)
    if stages.shares_sampler and own.prediction_type != other.prediction_type:
        return problem("other_prediction", "prediction_type", own.prediction_type, other.prediction_type)
    for name in ALIKE if stages.shares_sampler else ALIKE[:1]:
        if name in own.network and name in other.network and own.network[name] != other.network[name]:
            return problem("other_shape", name, own.network[name], other.network[name])
    return None

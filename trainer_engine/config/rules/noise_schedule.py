"""Problems of a run with what its base weights were trained for: their noise schedule, and distillation to few sampler steps.

The engine and the preflight both ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer_engine.config.adapters.assistant import PATH, assistant_of
from trainer_engine.config.components import BASE, component_source
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.options import TrainingOptions
from trainer_engine.config.rules.timesteps import empty_part_problem, range_problem
from trainer_engine.contract.errors import Problem

DISTILLED = "distilled_weights"
ZERO_SNR = "rescale_betas_zero_snr"
USUAL_TIMESTEPS = 1000
ZERO_SNR_MESSAGE = f"{ZERO_SNR}=true makes the last timestep pure noise, from which a network that predicts the noise learns nothing."
ZERO_SNR_HINT = f"set prediction_type=v_prediction, or {ZERO_SNR}=false"


def zero_snr_problem() -> Problem:
    """The error of a schedule that ends in pure noise in a run that predicts the noise."""
    expected = "prediction_type=v_prediction"
    return Problem.error(ZERO_SNR, "needs_v_prediction", ZERO_SNR_MESSAGE, got=True, expected=expected, hint=ZERO_SNR_HINT)


def schedule_problems(options: TrainingOptions, spec: FamilySpec, scheduler: Mapping[str, Any]) -> Iterator[Problem]:
    """``scheduler``: the content of the base model's ``scheduler_config.json``."""
    if spec.objective == "flow_matching":
        return
    strength = options.objective.refiner_training_strength
    count = scheduler.get("num_train_timesteps", USUAL_TIMESTEPS)
    if isinstance(count, int) and 0 < strength < 1 and not options.objective.trained_part(count):
        yield empty_part_problem(strength)
    beyond = range_problem(options.objective, count) if isinstance(count, int) else None
    yield from [beyond] if beyond else []
    chosen, stated = options.model.prediction_type, scheduler.get("prediction_type")
    if (chosen or stated or spec.objective) == "epsilon":
        if options.model.rescale_betas_zero_snr:
            yield zero_snr_problem()
        elif scheduler.get(ZERO_SNR):
            message = "The base model's noise schedule ends in pure noise, from which a network that predicts the noise learns nothing."
            hint = "set prediction_type=v_prediction if the base model was trained on it"
            yield Problem.warning("prediction_type", "ends_in_noise", message, got="epsilon", expected="v_prediction", hint=hint)
    if chosen and stated and chosen != stated:
        message = f"The scheduler of the base model says that it was trained on {stated}; this run trains it on {chosen}."
        hint = f"leave prediction_type out to train on {stated}"
        yield Problem.note("prediction_type", "contradicts_base_model", message, got=chosen, expected=str(stated), hint=hint)


def distillation_problems(
    options: TrainingOptions, spec: FamilySpec, *, scheduler: Mapping[str, Any], network: Mapping[str, Any], pipeline: Mapping[str, Any]
) -> Iterator[Problem]:
    """``scheduler`` and ``pipeline`` are the base model's ``scheduler_config.json`` and ``model_index.json``, ``network`` is the network's
    ``config.json``."""
    facts = spec.distillation
    if facts is None or assistant_of(options.as_values()) is not None:
        return
    model = options.model
    source = component_source(model, spec, next(iter(spec.trained.values())).folder)
    is_base = source.option == BASE
    reason = facts.reason(
        flavour=(model.model_flavour or spec.default_flavour) if is_base else None,
        name=source.name,
        scheduler=scheduler if is_base else {},
        network=network,
        pipeline=pipeline if is_base else {},
    )
    if not reason:
        return
    option = source.option if not is_base or model.pretrained_model_name_or_path else "model_flavour"
    message = f"These weights seem to be distilled to few sampler steps ({reason}). Training destroys that: images get blurred."
    base = facts.base_of(model.model_flavour)
    hint = f"train {base}; an adapter that is trained there can be used with distilled weights too"
    if facts.assistant:
        hint += f". Or set model_type=lora and {PATH}={facts.assistant}, which keeps the distillation out of what is learned"
    yield Problem.warning(option, DISTILLED, message, got=source.name, expected=f"weights that are not distilled: {base}", hint=hint)

"""Rules of evaluation: its intervals, early stopping and CLIP scores."""

from __future__ import annotations

from collections.abc import Iterator

from trainer_engine.config.options.evaluation import CLIP
from trainer_engine.config.options.hooks import EXTERNAL
from trainer_engine.config.options.registry import REGISTRY, Rule, Values
from trainer_engine.config.prompt_library import names_prompts
from trainer_engine.contract.errors import Problem

INTERVALS = ("eval_steps_interval", "eval_epoch_interval")
MODEL = "pretrained_evaluation_model_name_or_path"


def evaluations_fit_the_run(values: Values) -> Iterator[Problem]:
    steps, epochs = (values[name] for name in INTERVALS)
    if steps and epochs:
        message = f"Evaluations run both every {steps} steps and every {epochs:g} epochs."
        yield Problem.note("eval_epoch_interval", "two_intervals", message, got=epochs)
    if steps and values["max_train_steps"] and steps > values["max_train_steps"]:
        yield _never("eval_steps_interval", steps, f"{values['max_train_steps']} steps")
    if epochs and values["num_train_epochs"] and epochs > values["num_train_epochs"]:
        yield _never("eval_epoch_interval", epochs, f"{values['num_train_epochs']} epochs")


def _never(name: str, interval: float, length: str) -> Problem:
    message = f"{name}={interval:g} is longer than the run of {length}: evaluations happen only before it and at its checkpoints."
    return Problem.note(name, "longer_than_run", message, got=interval)


def early_stop_has_evaluations(values: Values) -> Iterator[Problem]:
    patience = values["early_stop_patience"]
    if values["early_stop_min_delta"] and not patience:
        message = "early_stop_patience is 0: the run never ends early."
        yield Problem.note("early_stop_min_delta", "no_effect", message, got=values["early_stop_min_delta"])
    if not patience:
        return
    if values["eval_loss_disable"]:
        message = "early_stop_patience needs evaluations, but eval_loss_disable turns them off."
        yield Problem.error("early_stop_patience", "needs_evaluations", message, got=patience, expected="0, or eval_loss_disable=false")
    elif not any(values[name] for name in INTERVALS):
        message = "early_stop_patience counts evaluations at an interval, but no interval is set."
        yield Problem.error("early_stop_patience", "needs_interval", message, got=patience, expected="0, or eval_steps_interval as well")


def scoring_has_images(values: Values) -> Iterator[Problem]:
    kind, model = values["evaluation_type"], values[MODEL]
    if kind != CLIP:
        if model != REGISTRY[MODEL].default:
            yield Problem.note(MODEL, "no_effect", f"evaluation_type={kind} scores nothing: {MODEL} has no effect.", got=model)
    elif values["validation_disable"]:
        message = "validation_disable is set: there are no images to score, and evaluation_type has no effect."
        yield Problem.note("evaluation_type", "no_effect", message, got=kind)
    elif values["validation_method"] == EXTERNAL:
        message = f"validation_method={EXTERNAL}: the images of the external command are not scored, only those of the base model."
        yield Problem.note("evaluation_type", "base_model_alone", message, got=kind)


def nothing_to_score(values: Values, *, captions: bool) -> Iterator[Problem]:
    """Notes that no validation image can be scored. ``captions``: whether captions of datasets become validation prompts."""
    if values["evaluation_type"] == CLIP and not values["validation_disable"] and not names_prompts(values) and not captions:
        message = "No validation image has a prompt to be scored against."
        hint = "set validation_prompt, validation_prompt_library or user_prompt_library"
        yield Problem.note("evaluation_type", "nothing_to_score", message, got=CLIP, hint=hint)


RULES: tuple[Rule, ...] = (
    evaluations_fit_the_run,
    early_stop_has_evaluations,
    scoring_has_images,
)

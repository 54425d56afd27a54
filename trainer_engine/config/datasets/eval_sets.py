"""Eval sets (``dataset_type`` eval), which are never trained on, and checks of the options that refer to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer_engine.config.datasets.entry import EntryDraft
from trainer_engine.config.datasets.fields import eval_crop
from trainer_engine.config.datasets.masks import masks_of
from trainer_engine.config.datasets.names import specs
from trainer_engine.config.options.evaluation import EvaluationOptions
from trainer_engine.config.options.registry import REGISTRY
from trainer_engine.config.rules.evaluation import nothing_to_score
from trainer_engine.contract.errors import Problem

OF_TRAINING = ("repeats", "probability", "is_regularisation_data", "timestep_sampling_offset", "slider_strength")
"""Fields that set how a set is trained on."""
OF_SCHEDULES = ("start_epoch", "start_step", "end_epoch", "end_step", "train_batch_size")
"""Fields that set when and in which batches a set is trained on."""
OF_PAIRS = ("num_eval_images", "eval_dataset_id")
"""Options that also choose which pairs a validation generates if datasets have references."""


def settle(draft: EntryDraft) -> None:
    """Makes the crops of an eval set the same for every seed, and resets or refuses fields that have no effect on it."""
    draft.values["crop_style"] = eval_crop(draft.values["crop_style"])
    if draft.values["crop"] and draft.raw.get("crop_style") == "random":
        what = "eval images are cropped in the middle, so that the evaluation loss does not depend on the run's seed."
        draft.note("crop_style", "cut_in_the_middle", what, got="random")
    for name in OF_TRAINING:
        default = specs("eval")[name].default
        if draft.values[name] != default and name not in draft.reported:
            draft.note(name, "no_effect", f"it is never trained on: {name} has no effect.", got=draft.values[name])
            draft.values[name] = default
    for name in OF_SCHEDULES:
        if draft.values[name] != specs("eval")[name].default:
            draft.error(name, "not_for_type", f"{name} has no effect on a set of type eval.", got=draft.values[name], hint="remove it")


def problems(
    values: Mapping[str, Any], images: Sequence[EntryDraft], evals: Sequence[EntryDraft], references: Sequence[EntryDraft]
) -> Iterator[Problem]:
    """Yields the problems of options of evaluation, given the eval sets in the file."""
    yield from _named_set_exists(values["eval_dataset_id"], images, evals)
    paired = any(masks_of(draft, references)[1] for draft in images)
    yield from nothing_to_score(values, captions=paired or bool(evals))
    if evals:
        return
    for name in (*EvaluationOptions.model_fields, *(() if paired else OF_PAIRS)):
        if values[name] != REGISTRY[name].default:
            message = f"There is no dataset of dataset_type eval: {name} has no effect."
            hint = "put some images into a dataset of their own with dataset_type eval"
            yield Problem.note(name, "no_eval_set", message, got=values[name], hint=hint)


def _named_set_exists(wanted: str | None, images: Sequence[EntryDraft], evals: Sequence[EntryDraft]) -> Iterator[Problem]:
    """Checks ``eval_dataset_id``. Without eval sets it chooses the image set whose pairs a validation generates."""
    known = [draft.id for draft in evals or images]
    if not wanted or wanted in known:
        return
    trained = wanted in [draft.id for draft in images]
    message = f"The dataset {wanted} is trained on, so it is not evaluated on." if trained else f"There is no dataset {wanted!r}."
    expected = f"one of {', '.join(sorted(known))}" if known else "the id of a dataset"
    yield Problem.error("eval_dataset_id", "not_an_eval_set" if trained else "unknown_dataset", message, got=wanted, expected=expected)

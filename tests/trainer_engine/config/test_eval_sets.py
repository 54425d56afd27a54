"""Datasets that are held out, and what the options may say of them."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Level, Problem

OPTIONS: dict[str, Any] = {"output_dir": "/out", "model_family": "flux"}
IMAGES: dict[str, Any] = {"id": "cats", "instance_data_dir": "/cats"}
HELD_OUT: dict[str, Any] = {"id": "other-cats", "dataset_type": "eval", "instance_data_dir": "/other", "crop": True}


def parse(*entries: dict[str, Any], **options: Any) -> tuple[Dataloader, list[tuple[str, str, Level]]]:
    dataloader, problems = parse_dataloader(list(entries), {**OPTIONS, **options})
    return dataloader, reported(problems)


def reported(problems: list[Problem]) -> list[tuple[str, str, Level]]:
    return [(problem.option, problem.code, problem.level) for problem in problems if problem.code != "text_set_made"]


def test_an_eval_set_is_parsed_like_an_image_set_and_never_trained_on() -> None:
    dataloader, problems = parse(IMAGES, {**HELD_OUT, "resolution": 0.5, "resolution_type": "area", "caption_strategy": "textfile"})
    assert problems == []
    ([trained], [eval_set]) = dataloader.image_sets, dataloader.eval_sets
    assert (trained.is_trained, trained.is_eval, eval_set.is_trained, eval_set.is_eval) == (True, False, False, True)
    assert (eval_set.resolution, eval_set.caption_strategy, eval_set.vae_cache) == (0.5, "textfile", "/out/cache/vae/flux/other-cats")


def test_random_parts_are_cut_in_the_middle_and_those_of_its_references_too() -> None:
    reference = {"id": "refs", "conditioning_type": "reference_loose", "instance_data_dir": "/refs", "crop": True}
    dataloader, problems = parse(IMAGES, {**HELD_OUT, "crop_style": "random", "conditioning_data": "refs"}, reference)
    assert problems == [("dataloader[1].crop_style", "cut_in_the_middle", Level.NOTE)]
    [eval_set], [references] = dataloader.eval_sets, dataloader.reference_sets
    assert eval_set.crop_style == "center" and references.as_images(eval_set).crop_style == "center"
    corner, _ = parse(IMAGES, {**HELD_OUT, "crop_style": "corner"})
    assert corner.eval_sets[0].crop_style == "corner"


def test_repeats_and_probability_of_an_eval_set_get_a_note() -> None:
    dataloader, problems = parse(IMAGES, {**HELD_OUT, "repeats": 3, "probability": 0.5})
    assert problems == [(f"dataloader[1].{name}", "no_effect", Level.NOTE) for name in ("repeats", "probability")]
    assert dataloader.eval_sets[0].repeats == 0


def test_a_parsed_file_can_be_written_and_parsed_again() -> None:
    dataloader, _ = parse(IMAGES, HELD_OUT)
    again, problems = parse(*dataloader.as_document())
    assert again == dataloader and problems == []


def test_a_file_of_eval_sets_only_has_nothing_to_train_on() -> None:
    assert ("dataloader", "no_images", Level.ERROR) in parse(HELD_OUT)[1]


@pytest.mark.parametrize(
    ("entries", "wanted", "code"),
    [
        ((IMAGES, HELD_OUT), "other-cats", None),
        ((IMAGES,), "cats", None),
        ((IMAGES, HELD_OUT), "cats", "not_an_eval_set"),
        ((IMAGES, HELD_OUT), "dogs", "unknown_dataset"),
        ((IMAGES,), "dogs", "unknown_dataset"),
        ((IMAGES, {**HELD_OUT, "disabled": True}), "other-cats", "unknown_dataset"),
    ],
)
def test_the_option_names_an_eval_set_that_exists(entries: tuple[dict[str, Any], ...], wanted: str, code: str | None) -> None:
    found = [one for one in parse(*entries, eval_dataset_id=wanted)[1] if one[2] is Level.ERROR]
    assert found == ([("eval_dataset_id", code, Level.ERROR)] if code else [])


def test_options_of_evaluation_without_an_eval_set_get_a_note() -> None:
    options = {"eval_steps_interval": 10, "eval_timesteps": 4}
    assert parse(IMAGES, HELD_OUT, **options)[1] == []
    assert parse(IMAGES, **options)[1] == [(name, "no_eval_set", Level.NOTE) for name in options]
    of_pairs = {"num_eval_images": 2, "eval_dataset_id": "cats"}
    assert parse(IMAGES, **of_pairs)[1] == [(name, "no_eval_set", Level.NOTE) for name in of_pairs]
    references = {"id": "refs", "conditioning_type": "reference_strict", "instance_data_dir": "/refs"}
    assert parse({**IMAGES, "conditioning_data": "refs"}, references, **of_pairs)[1] == []


def test_images_are_scored_only_if_something_gives_them_a_prompt() -> None:
    scored, alone = {"evaluation_type": "clip"}, [("evaluation_type", "nothing_to_score", Level.NOTE)]
    references = {"id": "refs", "conditioning_type": "reference_strict", "instance_data_dir": "/refs"}
    assert parse(IMAGES, **scored)[1] == alone
    assert parse(IMAGES, HELD_OUT, **scored)[1] == []
    assert parse({**IMAGES, "conditioning_data": "refs"}, references, **scored)[1] == []
    prompts = {"validation_prompt": "x", "validation_prompt_library": "people", "user_prompt_library": '{"a": "b"}'}
    assert [parse(IMAGES, **scored, **{name: value})[1] for name, value in prompts.items()] == [[]] * 3


COMPLETE = {"model_family": "flux", "model_type": "lora", "data_backend_config": "/x.json", "output_dir": "/out"}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"eval_steps_interval": 10, "eval_epoch_interval": 0.5}, ("eval_epoch_interval", "two_intervals", Level.NOTE)),
        ({"eval_steps_interval": 0}, ("eval_steps_interval", "out_of_range", Level.ERROR)),
        ({"eval_epoch_interval": 0}, ("eval_epoch_interval", "out_of_range", Level.ERROR)),
        ({"eval_timesteps": 0}, ("eval_timesteps", "out_of_range", Level.ERROR)),
        ({"eval_steps_interval": 101}, ("eval_steps_interval", "longer_than_run", Level.NOTE)),
        ({"eval_epoch_interval": 3, "max_train_steps": 0, "num_train_epochs": 2}, ("eval_epoch_interval", "longer_than_run", Level.NOTE)),
        ({"early_stop_patience": 3}, ("early_stop_patience", "needs_interval", Level.ERROR)),
        ({"early_stop_patience": 3, "eval_loss_disable": True}, ("early_stop_patience", "needs_evaluations", Level.ERROR)),
        ({"early_stop_min_delta": 0.1}, ("early_stop_min_delta", "no_effect", Level.NOTE)),
        ({"evaluation_type": "clip", "validation_disable": True}, ("evaluation_type", "no_effect", Level.NOTE)),
        ({"evaluation_type": "clip", "validation_prompt": "a cat"}, None),
        ({"evaluation_type": "clip", "validation_method": "external-script"}, ("evaluation_type", "base_model_alone", Level.NOTE)),
        ({"evaluation_type": "fid"}, ("evaluation_type", "not_a_choice", Level.ERROR)),
        ({"eval_steps_interval": 10, "early_stop_patience": 3, "early_stop_min_delta": 0.1}, None),
    ],
)
def test_options_that_contradict_each_other_or_the_run_are_refused(options: dict[str, Any], problem: tuple[str, str, Level] | None) -> None:
    _, problems = check_options({**COMPLETE, "max_train_steps": 100, "num_train_epochs": 0, **options})
    found = [one for one in reported(problems) if one[0].startswith(("eval", "early"))]
    assert found == ([problem] if problem else [])

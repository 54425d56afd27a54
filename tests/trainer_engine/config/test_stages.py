"""The options of validation images that two networks of a noise schedule make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import options_with
from trainer_engine.config.families import specs
from trainer_engine.config.parse import check_options
from trainer_engine.config.run_paths import read_places
from trainer_engine.config.stages import NetworkFacts, OtherStage, mismatch, model_options, other_stage, run_sources
from trainer_engine.contract.errors import Level

BASE, REFINER = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-refiner-1.0"
FIRST_PIXART, SECOND_PIXART = (f"terminusresearch/pixart-900m-1024-ft-v0.7-stage{number}" for number in (1, 2))
FULL = {"sdxl_validation_pipeline_mode": "full-pipeline", "pixart_validation_pipeline_mode": "full-pipeline"}
IMAGES = {"validation_disable": False, "validation_prompt": "a cat"}
PAIR = {"refiner_training": True}
FIRST = {**PAIR, "refiner_training_invert_schedule": True}


def other_of(family: str, **values: Any) -> OtherStage | None:
    mode = f"{'pixart' if family == 'pixart_sigma' else family}_validation_pipeline_mode"
    chosen = {"pretrained_model_name_or_path": None, **IMAGES, mode: "full-pipeline", **values}
    return other_stage(options_with(model_family=family, **chosen), specs()[family])


@pytest.mark.parametrize(
    ("family", "values", "name", "flavour", "is_first"),
    [
        ("sdxl", {}, REFINER, "refiner-1.0", False),
        ("sdxl", {"model_flavour": "base-0.9"}, REFINER.replace("1.0", "0.9"), "refiner-0.9", False),
        ("sdxl", {"model_flavour": "refiner-1.0"}, BASE, "base-1.0", True),
        ("sdxl", {"model_flavour": "refiner-1.0", "sdxl_refiner_uses_full_range": True}, BASE, "base-1.0", True),
        ("sdxl", FIRST, REFINER, "refiner-1.0", False),
        ("sdxl", PAIR, BASE, "base-1.0", True),
        ("sdxl", {**PAIR, "sdxl_validation_stage1_model": "some/base"}, "some/base", "base-1.0", True),
        ("sdxl", {**FIRST, "sdxl_validation_stage2_model": "some/refiner"}, "some/refiner", "refiner-1.0", False),
        ("sdxl", {**FIRST, "sdxl_validation_stage1_model": "some/base"}, REFINER, "refiner-1.0", False),
        ("pixart_sigma", {"model_flavour": "900M-1024-v0.7-stage1"}, SECOND_PIXART, "900M-1024-v0.7-stage2", False),
        ("pixart_sigma", {"model_flavour": "900M-1024-v0.7-stage2"}, FIRST_PIXART, "900M-1024-v0.7-stage1", True),
        ("pixart_sigma", PAIR, FIRST_PIXART, "900M-1024-v0.7-stage1", True),
        ("pixart_sigma", FIRST, SECOND_PIXART, "900M-1024-v0.7-stage2", False),
    ],
)
def test_the_other_network_is_that_of_the_part_that_a_run_does_not_train(
    family: str, values: dict[str, Any], name: str, flavour: str, is_first: bool
) -> None:
    found = other_of(family, **values)
    assert found is not None
    assert (found.name, found.model.model_flavour, found.is_first) == (name, flavour, is_first)
    assert found.split == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("sdxl", {"sdxl_validation_pipeline_mode": "trained-stage"}),
        ("sdxl", {"validation_disable": True}),
        ("flux", {"pretrained_model_name_or_path": "somewhere"}),
    ],
)
def test_a_run_without_both_networks_has_no_other_one(family: str, values: dict[str, Any]) -> None:
    options = {**IMAGES, "sdxl_validation_pipeline_mode": "full-pipeline", **values}
    assert other_stage(options_with(model_family=family, **options), specs()[family]) is None


def reported(family: str, values: dict[str, Any]) -> set[tuple[str, str, Level]]:
    mode = "pixart_validation_pipeline_mode" if family == "pixart_sigma" else "sdxl_validation_pipeline_mode"
    given = {**options_with(model_family=family).as_values(), **IMAGES, mode: "full-pipeline", **values}
    return {(problem.option, problem.code, problem.level) for problem in check_options(given)[1]}


@pytest.mark.parametrize(
    ("family", "values", "problem"),
    [
        ("pixart_sigma", {}, ("pixart_validation_pipeline_mode", "trains_no_stage", Level.ERROR)),
        ("pixart_sigma", {**PAIR, "controlnet": True}, ("pixart_validation_pipeline_mode", "not_with_controlnet", Level.ERROR)),
        ("sdxl", {"refiner_training_strength": 0}, ("refiner_training_strength", "empty_range", Level.ERROR)),
        ("sdxl", {"refiner_training_strength": 1}, ("refiner_training_strength", "empty_range", Level.ERROR)),
        ("sdxl", {"validation_disable": True}, ("sdxl_validation_pipeline_mode", "no_effect", Level.NOTE)),
        ("sdxl", {"sdxl_validation_stage1_model": "a/b"}, ("sdxl_validation_stage1_model", "no_effect", Level.NOTE)),
        ("sdxl", {**PAIR, "sdxl_validation_stage2_model": "a/b"}, ("sdxl_validation_stage2_model", "no_effect", Level.NOTE)),
        (
            "sdxl",
            {"sdxl_validation_pipeline_mode": "trained-stage", "sdxl_validation_stage2_model": "a/b"},
            ("sdxl_validation_stage2_model", "no_effect", Level.NOTE),
        ),
        ("sdxl", {"validation_num_inference_steps": 4}, ("validation_num_inference_steps", "too_few_for_stage", Level.NOTE)),
        ("sdxl", {"sdxl_validation_pipeline_mode": "both"}, ("sdxl_validation_pipeline_mode", "not_a_choice", Level.ERROR)),
        ("flux", {}, ("sdxl_validation_pipeline_mode", "other_family", Level.NOTE)),
    ],
)
def test_validate_names_what_two_networks_cannot_do(family: str, values: dict[str, Any], problem: tuple[str, str, Level]) -> None:
    assert problem in reported(family, values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model_flavour": "refiner-1.0"},
        {**FIRST, "refiner_training_strength": 0.35},
        {"refiner_training_strength": 0.35},
        {"sdxl_validation_stage2_model": "a/b"},
    ],
)
def test_validate_has_nothing_to_say_about_two_networks_that_fit(values: dict[str, Any]) -> None:
    names = {name for name, _, _ in reported("sdxl", values)}
    about = {"validation_disable", "refiner_training", "refiner_training_strength", "sdxl_validation_pipeline_mode", *model_options()}
    assert not names & about


def test_validate_names_the_option_that_adds_the_other_network() -> None:
    given = {**options_with(model_family="pixart_sigma").as_values(), **IMAGES, **PAIR}
    hints = {problem.option: problem.hint for problem in check_options(given)[1]}
    assert hints["refiner_training"].startswith("set pixart_validation_pipeline_mode=full-pipeline")
    given = {**options_with(model_family="sdxl").as_values(), **IMAGES, "model_flavour": "refiner-1.0"}
    hints = {problem.option: problem.hint for problem in check_options(given)[1]}
    assert hints["validation_disable"] == "set sdxl_validation_pipeline_mode=full-pipeline to begin with the base model"


def test_the_other_network_is_among_the_paths_and_sources_of_a_run(tmp_path: Path) -> None:
    options = options_with(model_family="sdxl", **IMAGES, **FULL, sdxl_validation_stage2_model=str(tmp_path))
    assert read_places(options, None)["sdxl_validation_stage2_model"] == tmp_path
    assert run_sources(options, specs()["sdxl"])["sdxl_validation_stage2_model"] == str(tmp_path)
    alone = options.model_copy(update={"validation": options.validation.model_copy(update={"validation_disable": True})})
    assert "sdxl_validation_stage2_model" not in run_sources(alone, specs()["sdxl"])


@pytest.mark.parametrize(
    ("family", "scheduler", "network", "prediction", "code"),
    [
        ("pixart_sigma", {}, {}, "epsilon", None),
        ("pixart_sigma", {"num_train_timesteps": 1000}, {"in_channels": 4, "caption_channels": 64}, "epsilon", None),
        ("pixart_sigma", {"num_train_timesteps": 500}, {}, "epsilon", "other_schedule"),
        ("pixart_sigma", {}, {}, "v_prediction", "other_prediction"),
        ("pixart_sigma", {}, {"caption_channels": 32}, "epsilon", "other_shape"),
        ("sdxl", {}, {}, "v_prediction", None),
        ("sdxl", {}, {"caption_channels": 32}, "epsilon", None),
        ("sdxl", {}, {"in_channels": 9}, "epsilon", "other_shape"),
    ],
)
def test_networks_that_cannot_pass_an_image_on_are_refused(
    family: str, scheduler: dict[str, Any], network: dict[str, Any], prediction: str, code: str | None
) -> None:
    stage, stages = other_of(family, **FIRST), specs()[family].stages
    assert stage is not None and stages is not None
    own = NetworkFacts({}, {"in_channels": 4, "caption_channels": 64}, "epsilon")
    found = mismatch(stage, stages, own, NetworkFacts(scheduler, network, prediction))
    assert (found.code if found else None) == code
    assert found is None or (found.option == stage.option and stage.name in found.message)

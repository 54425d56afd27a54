"""What a new environment will hold is known before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from environments.create.plan import NewEnvironment, PlannedEnvironment, plan
from environments.examples import find_example, first_lora
from environments.paths import Home
from tests.helpers.pictures import generate_images
from trainer_engine.config.families import FORMAT_FAMILIES, find_spec


@pytest.fixture
def place(tmp_path: Path) -> Home:
    (tmp_path / "config").mkdir()
    return Home(tmp_path, roots=())


def planned(place: Home, request: NewEnvironment) -> PlannedEnvironment:
    result = plan(request, place)
    assert isinstance(result, PlannedEnvironment), result
    return result


def test_planning_writes_nothing(place: Home) -> None:
    made = planned(place, NewEnvironment("demo", "pixart_sigma", model_type="full"))
    assert made.datasets_path == place.config / "demo" / "multidatabackend.json"
    assert made.datasets is not None and made.datasets[0]["instance_data_dir"] == "datasets/demo"
    assert list(place.config.iterdir()) == []


def test_the_request_wins_over_the_example_over_the_starter(place: Home) -> None:
    request = NewEnvironment("demo", model_flavour="600M-1024", example="pixart_sigma_900m_full")
    config = planned(place, request).config
    assert config["model_flavour"] == "600M-1024"
    assert config["pretrained_model_name_or_path"] == "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
    assert config["max_train_steps"] == 3000 and config["output_dir"] == "output/demo"


def test_without_a_flavour_the_familys_own_is_taken(place: Home) -> None:
    spec = find_spec("pixart_sigma")
    assert spec is not None
    assert planned(place, NewEnvironment("demo", "pixart", model_type="full")).config["model_flavour"] == spec.default_flavour


def test_no_datasets_are_planned_where_none_are_wanted(place: Home) -> None:
    made = planned(place, NewEnvironment("demo", "pixart_sigma", model_type="full", create_dataloader=False))
    assert made.datasets is None and made.config["data_backend_config"] == "demo/multidatabackend.json"


@pytest.mark.parametrize("family", sorted(name for name in FORMAT_FAMILIES if find_spec(name) is None))
def test_every_family_of_the_format_without_code_is_known_and_not_available(place: Home, family: str) -> None:
    problems = plan(NewEnvironment("demo", family), place)
    assert isinstance(problems, list)
    assert [(problem.option, problem.code) for problem in problems] == [("model_family", "not_available")]
    assert "known, not available yet" in problems[0].message


def with_images(place: Home, **request: Any) -> Any:
    return plan(NewEnvironment(**{"name": "cat", "example": "flux_dev_lora", "images": "datasets/cats", **request}), place)


@pytest.fixture
def cats(place: Home) -> Path:
    folder = place.root / "datasets/cats"
    generate_images(folder, count=2)
    return folder


def test_own_images_take_the_place_of_those_of_an_example(place: Home, cats: Path) -> None:
    found = with_images(place, trigger_word="  sks  cat ", options={"--max_train_steps": 10, "resolution": 512})
    assert isinstance(found, PlannedEnvironment) and found.datasets is not None
    images, texts = found.datasets
    assert (images["id"], images["instance_data_dir"], images["resolution"]) == ("cat-images", "datasets/cats", 512)
    assert (images["caption_strategy"], images["instance_prompt"]) == ("instanceprompt", "sks cat")
    assert images["cache_dir_vae"] == "cache/cat/vae" and texts["cache_dir"] == "cache/cat/text"
    assert images["crop_style"] == "center", "the rest is the example's"
    assert found.config["max_train_steps"] == 10 and found.config["learning_rate"] == 1e-4
    assert found.config["validation_prompt"] == "a photograph of sks cat"
    example = find_example("flux_dev_lora")
    assert example is not None and example.datasets[0]["id"] == "my-images", "the example itself is not changed"


def test_text_files_beside_the_images_are_their_captions(place: Home, cats: Path) -> None:
    (cats / "sub").mkdir()
    (cats / "sub/a.txt").write_text("a cat")
    images = with_images(place, trigger_word="sks").datasets[0]
    assert (images["caption_strategy"], images["prepend_instance_prompt"], images["instance_prompt"]) == ("textfile", True, "sks")
    assert "instance_prompt" not in with_images(place).datasets[0]
    (cats / "sub/a.txt").unlink()
    assert with_images(place).datasets[0]["caption_strategy"] == "filename"


def test_a_model_without_an_example_gets_values_for_an_adapter(place: Home, cats: Path) -> None:
    found = with_images(place, example=None, model_family="sdxl", trigger_word="sks")
    assert found.config["learning_rate"] == 1e-4 and found.config["lora_rank"] == 16
    assert found.datasets[0]["instance_data_dir"] == "datasets/cats"
    full = with_images(place, example=None, model_family="sdxl", model_type="full")
    assert "lora_rank" not in full.config


@pytest.mark.parametrize(
    ("request_", "option"),
    [
        ({"images": "datasets/none"}, "images"),
        ({"images": "/etc"}, "images"),
        ({"images": None, "trigger_word": "sks"}, "trigger_word"),
        ({"trigger_word": "x" * 201}, "trigger_word"),
        ({"options": {"model_family": "sdxl"}}, "options.model_family"),
        ({"options": {"no_such_option": 1}}, "no_such_option"),
        ({"options": {"learning_rate": -1}}, "learning_rate"),
    ],
)
def test_what_is_wrong_with_images_and_options_is_said_before_anything_is_written(
    place: Home, cats: Path, request_: dict[str, Any], option: str
) -> None:
    found = with_images(place, **request_)
    assert isinstance(found, list) and option in [problem.option for problem in found]


@pytest.mark.parametrize(
    ("family", "flavour", "name"),
    [("flux", "dev", "flux_dev_lora"), ("flux", "kontext", None), ("sdxl", "base-1.0", None), ("flux", "schnell", None)],
)
def test_a_first_adapter_begins_with_the_example_of_its_flavour(family: str, flavour: str, name: str | None) -> None:
    found = first_lora(family, flavour)
    assert (found.name if found else None) == name


def test_an_adapter_starts_with_a_higher_learning_rate_than_a_whole_model(place: Home) -> None:
    rates = {
        kind: planned(place, NewEnvironment("demo", "pixart_sigma", model_type=kind)).config["learning_rate"] for kind in ("lora", "full")
    }
    assert rates == {"lora": 1e-4, "full": 1e-5}

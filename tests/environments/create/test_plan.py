"""What a new environment will hold is known before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from environments.create.plan import NewEnvironment, PlannedEnvironment, plan
from environments.paths import Home
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


def test_an_adapter_starts_with_a_higher_learning_rate_than_a_whole_model(place: Home) -> None:
    rates = {
        kind: planned(place, NewEnvironment("demo", "pixart_sigma", model_type=kind)).config["learning_rate"] for kind in ("lora", "full")
    }
    assert rates == {"lora": 1e-4, "full": 1e-5}

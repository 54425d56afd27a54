"""What a new environment and the shipped templates begin with validates as soon as its folders hold images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from environments import services
from environments.create.plan import NewEnvironment
from environments.create.starter import starter_datasets
from environments.examples import Example, shipped_examples
from environments.home import current_home
from environments.resolve.run import resolve_run
from tests.helpers.params import first_fast
from trainer_engine.config.families import specs
from trainer_engine.contract.errors import Level

pytestmark = pytest.mark.django_db


def fill(home: Path, datasets: Path) -> None:
    """Put images where the datasets file wants them."""
    for entry in json.loads(datasets.read_text()):
        if "instance_data_dir" in entry:
            folder = home / entry["instance_data_dir"]
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (96, 64), (number * 40, 90, 120)).save(folder / f"a_red_house_{number}.png")


def assert_valid(home: Path, name: str) -> None:
    environment = services.find(name)
    run = resolve_run(current_home(), environment.config, {})
    assert [problem for problem in run.problems if problem.level is not Level.NOTE] == []
    assert run.options is not None and run.dataloader is not None
    assert run.dataloader.default_text_set.id and len(run.dataloader.image_sets) == 1
    assert all(Path(entry["instance_data_dir"]).is_dir() for entry in run.datasets if "instance_data_dir" in entry)


@pytest.mark.parametrize("example", shipped_examples(), ids=lambda example: example.name)
def test_every_template_validates_when_its_folders_are_filled(home: Path, example: Example) -> None:
    services.create_environment(NewEnvironment("mine", example=example.name), actor="test")
    fill(home, home / "config" / "mine" / "multidatabackend.json")
    assert_valid(home, "mine")


@pytest.mark.parametrize("example", shipped_examples(), ids=lambda example: example.name)
def test_a_template_copied_by_hand_is_an_environment_that_validates(home: Path, example: Example) -> None:
    folder = home / "config" / example.name
    folder.mkdir()
    for path in example.config_path.parent.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    fill(home, folder / "multidatabackend.json")
    assert_valid(home, example.name)


@pytest.mark.parametrize("family", sorted(specs()))
@pytest.mark.parametrize("include_defaults", first_fast([False, True]))
def test_a_new_environment_validates_when_its_folder_is_filled(home: Path, family: str, include_defaults: bool) -> None:
    spec = specs()[family]
    services.create_environment(NewEnvironment("mine", family, model_type=spec.model_types[0]), actor="test")
    services.regenerate_dataloader("mine", include_defaults=include_defaults, actor="test")
    fill(home, home / "config" / "mine" / "multidatabackend.json")
    assert_valid(home, "mine")


@pytest.mark.parametrize("flavour", list(specs()["pixart_sigma"].flavours))
def test_the_starter_names_the_weights_of_the_flavour(home: Path, flavour: str) -> None:
    made = services.create_environment(NewEnvironment("mine", "pixart_sigma", flavour, "full"), actor="test")
    assert made.config["pretrained_model_name_or_path"] == specs()["pixart_sigma"].flavours[flavour]


def test_the_starter_takes_the_sizes_of_the_configuration() -> None:
    images = starter_datasets("mine", {"resolution": 0.5, "resolution_type": "area"})[0]
    assert (images["resolution"], images["resolution_type"]) == (0.5, "area")
    images = starter_datasets("mine", {"resolution": 512.0})[0]
    assert images["resolution"] == 512 and isinstance(images["resolution"], int)


def test_templates_say_what_they_are_for() -> None:
    assert len(shipped_examples()) >= 2
    for example in shipped_examples():
        assert example.description and example.config["model_family"] in specs()
        assert example.config["data_backend_config"] == f"{example.name}/multidatabackend.json"

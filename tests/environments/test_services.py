"""What other parts of the server ask of environments, and what the database itself holds fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.db import IntegrityError, transaction

from environments import services
from environments.create.plan import NewEnvironment
from environments.errors import EnvironmentInUse, EnvironmentNotFound, EnvironmentProblems, FilesNotWritable
from environments.models import Environment, Revision

pytestmark = pytest.mark.django_db

VALUES = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "/workspace/output/inline-demo", "max_train_steps": 200}


def make(name: str = "demo") -> Environment:
    return services.create_environment(NewEnvironment(name, "pixart_sigma", model_type="full"), actor="test")


def test_the_database_holds_that_one_environment_is_active(home: Path) -> None:
    Environment.objects.create(name="a", is_active=True)
    Environment.objects.create(name="b")
    with pytest.raises(IntegrityError), transaction.atomic():
        Environment.objects.create(name="c", is_active=True)


def test_revision_numbers_are_given_once(home: Path) -> None:
    make()
    with pytest.raises(IntegrityError), transaction.atomic():
        Revision.objects.create(environment_name="demo", number=1, action="updated", actor="test")


def test_nothing_is_active_before_something_was_activated(home: Path) -> None:
    assert services.active() is None
    make()
    assert services.active() is None
    services.activate("demo", actor="test")
    active = services.active()
    assert active is not None and active.name == "demo"


def test_refusals_say_what_the_caller_can_do(home: Path) -> None:
    with pytest.raises(EnvironmentNotFound):
        services.find("demo")
    make()
    services.activate("demo", actor="test")
    with pytest.raises(EnvironmentInUse):
        services.delete_environment("demo", actor="test")
    with pytest.raises(EnvironmentProblems) as raised:
        services.update_environment("demo", config={"seed": "x", "nonsense": 1}, actor="test")
    assert {problem.option for problem in raised.value.problems} == {"seed", "nonsense"}


def test_where_the_file_cannot_be_written_the_row_stays_as_it_was(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    (home / "config" / "demo" / "config.json").unlink()
    (home / "config" / "demo" / "config.json").mkdir()
    with pytest.raises(FilesNotWritable):
        services.update_environment("demo", config={**VALUES, "seed": 9}, actor="test")
    assert "seed" not in Environment.objects.get().config


def test_a_run_writes_its_configuration_into_its_environment(home: Path) -> None:
    row = make()
    before = Revision.objects.count()
    services.record_run_config("demo", {**row.config, "seed": 5})
    assert services.find("demo").config["seed"] == 5
    assert json.loads((home / "config" / "demo" / "config.json").read_text())["--seed"] == 5
    assert Revision.objects.first().action == "started"  # type: ignore[union-attr]
    services.record_run_config("demo", {**row.config, "seed": 5})
    assert Revision.objects.count() == before + 1


def test_a_run_without_an_environment_gets_one_that_is_not_active(home: Path) -> None:
    made = services.record_run_config(None, VALUES).environment
    assert (made.name, made.is_active, made.config) == ("inline-demo", False, VALUES)
    assert json.loads((home / "config" / "inline-demo" / "config.json").read_text())["--max_train_steps"] == 200
    assert services.active() is None


def test_the_same_run_again_uses_the_same_environment_and_another_one_does_not(home: Path) -> None:
    first = services.record_run_config(None, VALUES).environment
    assert services.record_run_config(None, VALUES).environment.pk == first.pk
    assert services.record_run_config(None, {**VALUES, "seed": 1}).environment.name == "inline-demo-2"


@pytest.mark.parametrize(
    ("output_dir", "name"),
    [
        ("/data/out/my run!", "my-run-"),
        ("/data/out/..", "run"),
        ("", "run"),
        ("/data/active", "run-active"),
        ("/data/" + "x" * 200, "x" * 56),
        ("/data/münchen", "m-nchen"),
        ("/data/a...", "a"),
    ],
)
def test_any_output_folder_gives_a_name(home: Path, output_dir: str, name: str) -> None:
    assert services.record_run_config(None, {**VALUES, "output_dir": output_dir}).environment.name == name


def test_the_text_of_the_datasets_can_be_written_with_the_configuration(home: Path) -> None:
    row = make()
    services.update_environment("demo", config=row.config, datasets='[{"id": "x"}]', actor="admin:me")
    assert (home / "config" / "demo" / "multidatabackend.json").read_text() == '[{"id": "x"}]'
    last = Revision.objects.first()
    assert last is not None and last.datasets_text == '[{"id": "x"}]' and last.actor == "admin:me"


def test_a_datasets_file_that_several_share_is_not_deleted_with_one(home: Path) -> None:
    request = NewEnvironment("demo", "pixart_sigma", model_type="full", dataloader_path="shared.json")
    services.create_environment(request, actor="test")
    services.delete_environment("demo", actor="test")
    assert (home / "config" / "shared.json").is_file()

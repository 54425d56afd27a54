"""Copies and new names of environments: what comes along, what is adapted, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, transaction

from environments import services
from environments.copies import copy_environment, rename_environment
from environments.create.plan import NewEnvironment
from environments.errors import EnvironmentExists, EnvironmentNotFound, EnvironmentProblems, FilesNotWritable
from environments.models import Environment, Revision
from environments.paths import Home
from environments.secrets import store
from environments.secrets.datasets import of_file

pytestmark = pytest.mark.django_db

HOOK = '[{"webhook_type": "raw", "callback_url": "https://example.org/secret-path"}]'
BUCKET: dict[str, Any] = {
    "type": "aws",
    "aws_bucket_name": "b",
    "aws_data_prefix": "pictures",
    "aws_endpoint_url": "https://s3.example.org",
    "aws_access_key_id": "key-id",
    "aws_secret_access_key": "very-secret",
}


def make(name: str = "demo", **values: Any) -> Environment:
    request = NewEnvironment(name, "pixart_sigma", model_type="lora", lora_type="lycoris", description="first")
    row = services.create_environment(request, actor="test")
    if values:
        row, _ = services.update_environment(name, config={**row.config, **values}, tags=["one"], actor="test")
    return row


def text(home: Path, name: str, file: str) -> Any:
    return json.loads((home / "config" / name / file).read_text())


def test_a_copy_has_the_options_the_files_and_an_output_folder_of_its_own(home: Path) -> None:
    make(seed=5, max_train_steps=9)
    copied = copy_environment("demo", "other", actor="test")
    assert {one.option: one.after for one in copied.changed} == {
        "data_backend_config": "other/multidatabackend.json",
        "lycoris_config": "other/lycoris_config.json",
        "output_dir": "output/other",
    }
    row = services.find("other")
    assert (row.config["seed"], row.description, row.tags, row.is_active) == (5, "first", ["one"], False)
    for file in ("multidatabackend.json", "lycoris_config.json"):
        assert text(home, "other", file) == text(home, "demo", file)
    assert services.find("demo").config["output_dir"] == "output/demo"
    assert Revision.objects.get(environment_name="other").action == "copied"


@pytest.mark.parametrize(("output", "of_copy"), [("big/disk/pixart", "big/disk/pixart-other"), ("runs/demo/", "runs/other")])
def test_a_copy_never_goes_on_from_the_checkpoints_of_its_source(home: Path, output: str, of_copy: str) -> None:
    make(output_dir=output)
    assert copy_environment("demo", "other", actor="test").environment.config["output_dir"] == of_copy


def test_a_copy_keeps_the_name_of_a_datasets_file_that_others_use(home: Path) -> None:
    shared = home / "config" / "shared.json"
    shared.write_text((make() and home / "config" / "demo" / "multidatabackend.json").read_text())
    services.update_environment("demo", config={**services.find("demo").config, "data_backend_config": "config/shared.json"}, actor="test")
    assert copy_environment("demo", "other", actor="test").environment.config["data_backend_config"] == "config/shared.json"


@pytest.mark.parametrize("act", [copy_environment, rename_environment])
def test_secrets_come_along_and_stay_hidden(home: Path, act: Any) -> None:
    make(webhook_config=HOOK)
    sets = text(home, "demo", "multidatabackend.json")
    del sets[0]["instance_data_dir"]
    services.write_datasets_file("demo", [sets[0] | BUCKET, *sets[1:]], actor="test")
    act("demo", "other", actor="test")
    place = Home(home)
    assert "secret-path" in store.read(place, store.of_environment("other"))["webhook_config"]
    assert "very-secret" in json.dumps(store.read(place, of_file(home / "config" / "other" / "multidatabackend.json")))
    written = "".join(path.read_text() for path in (home / "config" / "other").iterdir())
    assert "secret" not in written.replace("aws_secret_access_key", "") and "***" in written
    assert bool(store.read(place, store.of_environment("demo"))) is (act is copy_environment)


def test_a_renamed_environment_keeps_its_folder_and_its_output(home: Path) -> None:
    make(max_train_steps=9)
    services.activate("demo", actor="test")
    (home / "config" / "demo" / "prompts.json").write_text("{}")
    row = rename_environment("demo", "other", actor="test").environment
    assert row.is_active and row.config["output_dir"] == "output/demo"
    assert row.config["data_backend_config"] == "other/multidatabackend.json"
    assert (home / "config" / "other" / "prompts.json").exists() and not (home / "config" / "demo").exists()
    with pytest.raises(EnvironmentNotFound):
        services.find("demo")
    assert text(home, "other", "config.json")["--data_backend_config"] == "other/multidatabackend.json"
    assert [Revision.objects.filter(environment_name=name).first().action for name in ("demo", "other")] == ["renamed"] * 2  # type: ignore[union-attr]


def test_a_datasets_file_of_another_name_keeps_its_secrets_when_its_folder_is_renamed(home: Path) -> None:
    make()
    sets = text(home, "demo", "multidatabackend.json")
    del sets[0]["instance_data_dir"]
    services.update_environment(
        "demo",
        config={**services.find("demo").config, "data_backend_config": "demo/data.json"},
        datasets=json.dumps([sets[0] | BUCKET]),
        actor="test",
    )
    rename_environment("demo", "other", actor="test")
    assert services.find("other").config["data_backend_config"] == "other/data.json"
    assert "very-secret" in json.dumps(store.read(Home(home), of_file(home / "config" / "other" / "data.json")))


def test_a_path_that_only_begins_like_the_folder_stays(home: Path) -> None:
    make(cache_dir_vae="demo/vae")
    (home / "demo" / "vae").mkdir(parents=True)
    assert rename_environment("demo", "other", actor="test").environment.config["cache_dir_vae"] == "demo/vae"


def test_a_folder_that_runs_write_to_is_not_renamed(home: Path) -> None:
    make(output_dir="config/demo/out")
    with pytest.raises(EnvironmentProblems) as refused:
        rename_environment("demo", "other", actor="test")
    assert refused.value.problems[0].code == "inside_environment" and services.find("demo")


def test_a_database_that_fails_leaves_no_second_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make()

    def full(*_: object) -> None:
        raise OperationalError("database or disk is full")

    for act in (copy_environment, rename_environment):
        with monkeypatch.context() as patched, pytest.raises(OperationalError), transaction.atomic():
            patched.setattr("environments.copies.write_row", full)
            act("demo", "other", actor="test")
        assert [path.name for path in (home / "config").iterdir() if path.is_dir()] == ["demo"]
    assert services.find("demo").config["data_backend_config"] == "demo/multidatabackend.json"


@pytest.mark.parametrize("output", ["~", "/"])
def test_a_copy_writes_only_where_its_server_may(home: Path, output: str) -> None:
    row = make()
    Environment.objects.filter(pk=row.pk).update(config={**row.config, "output_dir": output})
    assert copy_environment("demo", "other", actor="test").environment.config["output_dir"] == "output/other"


@pytest.mark.parametrize("act", [copy_environment, rename_environment])
@pytest.mark.parametrize("name", ["", "..", "../x", "active", "a b", "x" * 65])
def test_a_name_that_no_environment_can_have_is_refused(home: Path, act: Any, name: str) -> None:
    make()
    with pytest.raises(EnvironmentProblems):
        act("demo", name, actor="test")
    assert Environment.objects.count() == 1


@pytest.mark.parametrize("act", [copy_environment, rename_environment])
def test_a_name_that_is_taken_is_refused(home: Path, act: Any) -> None:
    make()
    make("other")
    with pytest.raises(EnvironmentExists):
        act("demo", "other", actor="test")
    assert (home / "config" / "demo" / "config.json").exists()


@pytest.mark.parametrize("act", [copy_environment, rename_environment])
def test_files_that_lie_in_the_new_folder_are_not_replaced(home: Path, act: Any) -> None:
    make()
    there = home / "config" / "other" / "multidatabackend.json"
    there.parent.mkdir()
    there.write_text("mine")
    with pytest.raises(FilesNotWritable):
        act("demo", "other", actor="test")
    assert there.read_text() == "mine" and [path.name for path in there.parent.iterdir()] == [there.name]
    assert services.find("demo").config["data_backend_config"] == "demo/multidatabackend.json"
    assert Environment.objects.count() == 1


@pytest.mark.parametrize("act", [copy_environment, rename_environment])
def test_a_file_that_cannot_be_used_is_mended_first(home: Path, act: Any) -> None:
    make()
    (home / "config" / "demo" / "config.json").write_text("{")
    with pytest.raises(EnvironmentProblems) as refused:
        act("demo", "other", actor="test")
    assert refused.value.problems[0].code == "unusable_file"
    assert (home / "config" / "demo" / "config.json").read_text() == "{"


def test_a_folder_gets_its_name_back_if_it_cannot_be_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(webhook_config=HOOK)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "config.json")

    with monkeypatch.context() as patched, pytest.raises(FilesNotWritable):
        patched.setattr("environments.copies.write_row", fail)
        rename_environment("demo", "other", actor="test")
    assert services.find("demo").config["data_backend_config"] == "demo/multidatabackend.json"
    assert store.read(Home(home), store.of_environment("demo"))
    assert not (home / "config" / "other").exists()


def test_an_environment_whose_folder_is_a_link_is_renamed_with_its_secrets(home: Path, tmp_path: Path) -> None:
    make()
    folder = home / "config" / "demo"
    folder.rename(home / "elsewhere")
    folder.symlink_to(home / "elsewhere")
    sets = text(home, "demo", "multidatabackend.json")
    del sets[0]["instance_data_dir"]
    services.write_datasets_file("demo", [sets[0] | BUCKET, *sets[1:]], actor="test")
    rename_environment("demo", "other", actor="test")
    assert "very-secret" in json.dumps(store.read(Home(home), of_file(home / "config" / "other" / "multidatabackend.json")))

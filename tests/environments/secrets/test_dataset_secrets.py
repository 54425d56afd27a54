"""Secrets in datasets files: the server writes and shows none, and loses none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments import services
from environments.admin.forms import datasets_of
from environments.create.plan import NewEnvironment
from environments.home import current_home
from environments.models import Environment, Revision
from environments.resolve.run import resolve_run
from environments.secrets import store
from environments.secrets.datasets import keep_text, of_file, shown_text
from trainer_engine.config.datasets.secrets import STORED_AS

pytestmark = pytest.mark.django_db
SECRET = "canary-7f3a"
BUCKET = {
    "id": "cats",
    "type": "aws",
    "aws_bucket_name": "cats",
    "aws_endpoint_url": "https://s3.example.com",
    "aws_access_key_id": f"id-{SECRET}",
    "aws_secret_access_key": f"key-{SECRET}",
}
TEXTS = {"id": "texts", "dataset_type": "text_embeds"}


@pytest.fixture
def row(home: Path) -> Environment:
    return services.create_environment(NewEnvironment("demo", "pixart_sigma", model_type="full"), actor="test")


def file_of(home: Path) -> Path:
    return home / "config/demo/multidatabackend.json"


def save(row: Environment, text: str) -> None:
    services.update_environment("demo", config=row.config, datasets=text, actor="test")


def keys_of_a_run(row: Environment) -> list[tuple[Any, Any]]:
    found = resolve_run(current_home(), row.config, {})
    return [(entry.get("aws_access_key_id"), entry.get("aws_secret_access_key")) for entry in found.datasets if entry["type"] == "aws"]


def test_a_saved_file_holds_no_key_and_a_run_has_it(home: Path, row: Environment) -> None:
    save(row, json.dumps([BUCKET, TEXTS]))
    assert SECRET not in file_of(home).read_text() and "***" in file_of(home).read_text()
    assert keys_of_a_run(row) == [(f"id-{SECRET}", f"key-{SECRET}")]
    rows = str([list(model.objects.values()) for model in (Environment, Revision)])
    assert SECRET not in rows and SECRET not in datasets_of(row)


def test_a_file_that_is_shown_and_saved_again_keeps_its_keys(home: Path, row: Environment) -> None:
    save(row, json.dumps([BUCKET, TEXTS]))
    shown = json.loads(datasets_of(row))
    shown[0]["repeats"] = 3
    save(row, json.dumps(shown))
    assert keys_of_a_run(row) == [(f"id-{SECRET}", f"key-{SECRET}")] and SECRET not in file_of(home).read_text()
    shown[0]["aws_secret_access_key"] = "new"
    save(row, json.dumps(shown))
    assert keys_of_a_run(row) == [(f"id-{SECRET}", "new")]
    save(row, json.dumps([TEXTS]))
    assert store.read(current_home(), of_file(file_of(home))) == {}


def test_a_key_in_a_file_of_the_owner_is_shown_as_stars_and_kept_when_it_is_saved(home: Path, row: Environment) -> None:
    file_of(home).write_text(json.dumps([BUCKET, TEXTS]))
    shown = datasets_of(row)
    assert SECRET not in shown and json.loads(shown)[0]["aws_secret_access_key"] == "***"
    assert SECRET in file_of(home).read_text(), "the file of its owner stays as it is"
    save(row, shown)
    assert SECRET not in file_of(home).read_text()
    assert keys_of_a_run(row) == [(f"id-{SECRET}", f"key-{SECRET}")]


def test_a_key_is_not_given_to_another_machine(home: Path, row: Environment) -> None:
    save(row, json.dumps([BUCKET, TEXTS]))
    [entry, texts] = json.loads(datasets_of(row))
    save(row, json.dumps([{**entry, "aws_endpoint_url": "https://evil.example"}, texts]))
    found = resolve_run(current_home(), row.config, {})
    assert SECRET not in str(found.datasets)
    codes = {problem.code for problem in found.problems if problem.option.startswith("dataloader[0].aws_")}
    assert codes == {"hidden_value"}


def test_text_without_secrets_is_written_and_shown_as_it_is(home: Path) -> None:
    text = '[ {"id":"cats",\n   "instance_prompt": "a token"} ]\n'
    assert shown_text(text) == text == keep_text(text, home / "x.json", current_home())
    assert not of_file(home / "x.json").file(current_home()).exists()


@pytest.mark.parametrize("text", [f'[{{"aws_secret_access_key": "{SECRET}"', f'[{{"id": "a", "aws_session_token": "{SECRET}",]'])
def test_a_broken_file_shows_no_key(home: Path, text: str) -> None:
    assert SECRET not in shown_text(text)
    assert keep_text(text, home / "x.json", current_home()) == text


def test_the_keys_of_a_deleted_environment_are_forgotten(home: Path, row: Environment) -> None:
    save(row, json.dumps([BUCKET, TEXTS]))
    path = of_file(file_of(home)).file(current_home())
    assert STORED_AS in json.loads(path.read_text()) and path.stat().st_mode & 0o077 == 0
    services.delete_environment("demo", actor="test")
    assert not path.exists()

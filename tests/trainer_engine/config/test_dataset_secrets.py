"""Secrets of datasets: hidden, restored for the same machine only, and given to the engine apart from its job file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_run import tiny_datasets, tiny_options
from trainer_engine.__main__ import read_job
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.datasets.secrets import STORED_AS, hide_datasets, joined, reveal_datasets, secrets_in
from trainer_engine.config.options.secrets import for_engine, secrets_of_run
from trainer_engine.config.parse import parse_options
from trainer_engine.config.secrets import VARIABLE
from trainer_engine.contract.errors import DatasetUnusable, errors_in
from trainer_engine.contract.run import JobSpec, RunFolder

SECRET = "canary-7f3a"
KEYS = {"aws_access_key_id": f"id-{SECRET}", "aws_secret_access_key": f"key-{SECRET}", "aws_session_token": f"token-{SECRET}"}


def bucket(**fields: Any) -> dict[str, Any]:
    place = {"aws_bucket_name": "cats", "aws_endpoint_url": "https://s3.example.com", "aws_region_name": "auto"}
    return {"id": "cats", "type": "aws", "cache_dir_vae": "/cache", **place, **KEYS, **fields}


TEXTS: dict[str, Any] = {"id": "texts", "dataset_type": "text_embeds", "cache_dir": "/cache/text"}


def test_keys_are_hidden_and_everything_else_stays() -> None:
    hidden = hide_datasets([bucket(caption_strategy="filename"), TEXTS])
    assert SECRET not in json.dumps(hidden)
    assert hidden == [bucket(caption_strategy="filename", **dict.fromkeys(KEYS, "***")), TEXTS]
    assert hide_datasets([TEXTS, {"id": "local", "aws_session_token": None}]) == [TEXTS, {"id": "local", "aws_session_token": None}]


def test_a_password_in_an_address_is_hidden() -> None:
    [hidden] = hide_datasets([bucket(aws_endpoint_url=f"https://me:{SECRET}@s3.example.com/?token={SECRET}")])
    assert SECRET not in json.dumps(hidden)


def test_what_is_stored_is_no_more_than_what_reveals_the_keys() -> None:
    stored = secrets_in([bucket(instance_prompt="private words"), TEXTS])
    assert SECRET in stored and "private words" not in stored and "texts" not in stored
    assert secrets_in([TEXTS]) == "" == secrets_in({"not": "a list"})


def test_a_hidden_key_comes_back_for_the_same_machine() -> None:
    documents = [bucket(), bucket(id="dogs", aws_bucket_name="dogs", aws_secret_access_key="other"), TEXTS]
    stored = secrets_in(documents)
    assert reveal_datasets(hide_datasets(documents), stored) == documents
    assert reveal_datasets(list(reversed(hide_datasets(documents))), stored) == list(reversed(documents))
    moved = {**hide_datasets([bucket()])[0], "aws_data_prefix": "sets", "repeats": 3}
    assert reveal_datasets([moved], stored) == [{**moved, **KEYS}]


@pytest.mark.parametrize(
    "change",
    [{"aws_endpoint_url": "https://evil.example"}, {"aws_endpoint_url": "http://s3.example.com"}, {"aws_region_name": "eu-west-1"}],
)
def test_a_hidden_key_is_not_given_to_another_machine(change: dict[str, str]) -> None:
    sent = [{**hide_datasets([bucket()])[0], **change}]
    assert reveal_datasets(sent, secrets_in([bucket()])) == sent


def test_stored_keys_of_several_files_are_joined() -> None:
    stored = joined(["", secrets_in([bucket()]), secrets_in([bucket(id="dogs", aws_bucket_name="dogs")])])
    assert len(json.loads(stored)) == 2 and joined(["", ""]) == ""


@pytest.mark.parametrize("name", KEYS)
def test_stars_without_a_stored_key_are_refused(tmp_path: Path, name: str) -> None:
    options = parse_options(tiny_options(tmp_path, model="nobody/nothing"))
    _, problems = parse_dataloader([bucket(**{name: "***"}), TEXTS], options)
    assert [(problem.option, problem.code) for problem in errors_in(problems)] == [(f"dataloader[0].{name}", "hidden_value")]


def test_no_message_shows_a_key(tmp_path: Path) -> None:
    options = parse_options(tiny_options(tmp_path, model="nobody/nothing"))
    _, problems = parse_dataloader([bucket(aws_secret_access_key=[SECRET], aws_access_key_id={SECRET: 1}), TEXTS], options)
    assert len(errors_in(problems)) == 2 and SECRET not in str([problem.as_dict() for problem in problems])


def test_the_engine_gets_the_keys_apart_from_its_job_file(tmp_path: Path) -> None:
    datasets = [bucket(), tiny_datasets(tmp_path)[1]]
    options = tiny_options(tmp_path, model="nobody/nothing")
    secrets = secrets_of_run(options, datasets)
    folder = RunFolder(tmp_path / "run").create()
    JobSpec(job_id="1", options=options, datasets=hide_datasets(datasets)).write(folder)
    assert SECRET.encode() not in folder.job_file.read_bytes()
    given = json.loads(for_engine(secrets)[VARIABLE])
    _, dataloader, _ = read_job(folder, given)
    assert {name: dataloader.image_sets[0].own_fields[name] for name in KEYS} == KEYS
    with pytest.raises(DatasetUnusable, match="none is stored"):
        read_job(folder, {name: text for name, text in given.items() if name != STORED_AS})

"""``/api/options/compatibility``: any configuration may be asked about, and nothing of it is stored or opened."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from environments.models import Environment
from tests.environments.conftest import Api

ADDRESS = "/api/options/compatibility"
CONFIG = {
    "--model_family": "sdxl",
    "--model_type": "lora",
    "--data_backend_config": "x.json",
    "--output_dir": "/root/somewhere",
    "--max_train_steps": 10,
}


def ask(body: Any, address: str = ADDRESS, status: int = 200) -> dict[str, Any]:
    answer = Client().post(address, json.dumps(body), content_type="application/json", headers={"accept": "application/json"})
    assert answer.status_code == status, answer.content
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize("address", [ADDRESS, f"{ADDRESS}/", "/api/configs/compatibility"])
def test_a_configuration_is_answered_at_both_addresses_and_stored_nowhere(api: Api, address: str) -> None:
    before = sorted(api.home.rglob("*"))
    report = ask({"config": CONFIG}, address)
    assert report["starts"] is True and report["datasets"] is None
    assert sorted(api.home.rglob("*")) == before and not Environment.objects.exists()


def test_obstacles_of_options_and_datasets_come_together(api: Api) -> None:
    report = ask({"config": {**CONFIG, "--trust_remote_code": True}, "datasets": [{"id": "a", "instance_data_dir": "/x", "colour": "red"}]})
    assert {(one["reason"], one["option"]) for one in report["obstacles"]} >= {
        ("unsafe", "trust_remote_code"),
        ("unknown", "dataloader[0].colour"),
    }


def test_exported_files_are_taken_with_their_wrappers(api: Api) -> None:
    sets = [{"id": "a", "type": "local", "instance_data_dir": "/x", "caption_strategy": "filename"}]
    texts = {"id": "t", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "c"}
    meta = {"name": "default", "tags": [], "model_family": None}
    report = ask({"config": {"_metadata": meta, "config": CONFIG}, "datasets": {"_metadata": meta, "datasets": [*sets, texts]}})
    assert report["starts"] is True
    assert (report["options"], report["datasets"]) == (len(CONFIG), 2)
    assert ask({"config": CONFIG, "datasets": {"sets": sets}}, status=422)


def test_a_form_takes_files(api: Api) -> None:
    form = {
        "config": SimpleUploadedFile("config.json", json.dumps({"_metadata": {}, "config": CONFIG}).encode()),
        "datasets": SimpleUploadedFile("multidatabackend.json", b'[{"id": "a"}]'),
    }
    answer = Client().post(ADDRESS, form, headers={"accept": "application/json"})
    assert answer.status_code == 200, answer.content
    assert answer.json()["options"] == len(CONFIG) and answer.json()["datasets"] == 1


def test_a_form_takes_text(api: Api) -> None:
    answer = Client().post(ADDRESS, {"config": json.dumps(CONFIG)}, headers={"accept": "application/json"})
    assert answer.status_code == 200 and answer.json()["starts"] is True


@pytest.mark.parametrize(
    ("body", "option", "code"),
    [
        ({}, "config", "required"),
        ({"config": [1]}, "config", "not_an_object"),
        ({"config": "{}"}, "config", "not_an_object"),
        ({"config": CONFIG, "datasets": {"id": "a"}}, "datasets", "not_a_list"),
        ({"config": CONFIG, "more": 1}, "more", "unknown_field"),
    ],
)
def test_a_request_without_a_configuration_is_refused(api: Api, body: Any, option: str, code: str) -> None:
    problems = ask(body, status=422)["problems"]
    assert [(problem["option"], problem["code"]) for problem in problems] == [(option, code)]


@pytest.mark.parametrize("text", ["{not json", '{"a": 1, "a": 2}', "[" * 1000])
def test_text_of_a_form_that_is_not_json_is_refused(api: Api, text: str) -> None:
    answer = Client().post(ADDRESS, {"config": text}, headers={"accept": "application/json"})
    assert answer.status_code == 422 and [problem["code"] for problem in answer.json()["problems"]] == ["bad_json"]


def test_a_file_that_is_too_large_is_refused(api: Api) -> None:
    answer = Client().post(
        ADDRESS, {"config": SimpleUploadedFile("c.json", b" " * (1024 * 1024 + 1))}, headers={"accept": "application/json"}
    )
    assert answer.status_code in (413, 422)


def test_paths_in_a_configuration_are_not_opened(api: Api) -> None:
    report = ask({"config": {**CONFIG, "--user_prompt_library": "/etc/passwd", "--data_backend_config": "/etc/shadow"}})
    assert "root:" not in json.dumps(report)


def test_secrets_are_not_repeated(api: Api) -> None:
    text = json.dumps(ask({"config": {**CONFIG, "--webhook_config": '{"auth_token": "s3cr3t-word", "webhook_type": 3}'}}))
    assert "s3cr3t-word" not in text


def test_the_refused_options_are_listed_with_their_reasons(api: Api) -> None:
    listed = Client().get(ADDRESS, headers={"accept": "application/json"}).json()
    assert "sdxl" in listed["families"]
    assert {"option": "trust_remote_code", "reason": "unsafe", "about": "it runs code that it downloads"} in listed["refused"]
    assert {one["option"] for one in listed["not_needed"]} & {one["option"] for one in listed["refused"]} == set()


def test_no_environment_can_take_the_name_of_the_call(api: Api) -> None:
    answer = Client().post("/api/configs/environments", {"name": "compatibility", "model_family": "sdxl"})
    assert answer.status_code == 422

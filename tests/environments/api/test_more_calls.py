"""The calls of ``/api/configs`` beyond the tutorial's: copies, templates, checks, datasets, revisions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.environments.conftest import Api
from tests.helpers.shapes import META


def test_a_copy_answers_what_is_different_in_it(api: Api) -> None:
    api.create()
    answer = api.post("/demo/copy", {"target_name": "other"})
    assert answer["message"] == "Configuration 'demo' copied to 'other'"
    assert answer["metadata"]["name"] == "other" and set(answer["metadata"]) == META
    assert {"option": "output_dir", "from": "output/demo", "to": "output/other"} in answer["changed"]


def test_a_renamed_environment_has_another_address(api: Api) -> None:
    api.create()
    answer = api.post("/demo/rename", {"new_name": "other"})
    assert answer["message"] == "Configuration renamed from 'demo' to 'other'" and answer["metadata"]["name"] == "other"
    assert api.refused("GET", "/demo")[0] == 404
    assert api.get("/other")["config"]["--data_backend_config"] == "other/multidatabackend.json"


@pytest.mark.parametrize(("call", "field"), [("copy", "target_name"), ("rename", "new_name")])
def test_a_bad_new_name_is_refused_by_the_name_of_its_field(api: Api, call: str, field: str) -> None:
    api.create()
    assert api.refused("POST", f"/demo/{call}", {field: "../x"}) == (422, [(field, "invalid_name")])
    assert api.refused("POST", f"/demo/{call}", {field: "demo"}) == (409, [("name", "exists")])
    assert api.refused("POST", f"/demo/{call}", {})[0] == 422
    assert api.refused("POST", f"/nothing/{call}", {field: "x"})[0] == 404


def test_every_template_makes_an_environment(api: Api) -> None:
    listed = api.get("/templates")
    assert listed["count"] == len(listed["templates"]) > 0
    for number, one in enumerate(listed["templates"]):
        answer = api.post("/from-template", {"template_name": one["name"], "config_name": f"run-{number}"})
        assert answer["message"] == f"Configuration 'run-{number}' created from template '{one['name']}'"
        assert answer["metadata"]["model_family"] == one["defaults"]["model_family"]
        assert answer["dataloader"]["path"] == f"run-{number}/multidatabackend.json"


def test_a_template_that_does_not_exist_is_named(api: Api) -> None:
    body = {"template_name": "nothing", "config_name": "x"}
    assert api.refused("POST", "/from-template", body) == (422, [("template_name", "unknown_example")])
    assert api.get("/")["count"] == 0


def test_an_environment_is_created_with_its_configuration(api: Api) -> None:
    config = {"--model_family": "pixart", "--model_type": "full", "--output_dir": "output/x", "seed": "5"}
    answer = api.post("/", {"name": "x", "config": config, "description": "mine", "tags": ["a"]})
    assert answer["message"] == "Configuration 'x' created successfully"
    assert answer["metadata"]["tags"] == ["a"] and answer["metadata"]["description"] == "mine"
    assert answer["validation"]["warnings"]
    assert api.get("/x")["config"]["--seed"] == 5 and api.get("/x")["config"]["--model_family"] == "pixart_sigma"
    assert api.refused("POST", "/", {"name": "x", "config": config}) == (409, [("name", "exists")])
    status, problems = api.refused("POST", "/", {"name": "..", "config": {"seed": "x", "nonsense": 1}})
    assert status == 422 and {option for option, _ in problems} == {"name", "seed", "nonsense"}


def test_a_configuration_is_checked_without_being_stored(api: Api) -> None:
    good = api.create()["config"]
    answer = api.post("/demo/validate")
    assert answer["name"] == "demo" and answer["is_valid"] is False  # the folder of the starter dataset does not exist yet
    assert [problem["code"] for problem in answer["problems"]] == ["not_found"]
    (api.home / "datasets" / "demo").mkdir(parents=True)
    assert api.post("/demo/validate")["is_valid"] is True
    assert api.post("/validate", good) == {key: value for key, value in api.post("/demo/validate").items() if key != "name"}
    wrong = api.post("/validate", {"config": good | {"--seed": "x", "--nonsense": 1}})
    assert wrong["is_valid"] is False and {problem["option"] for problem in wrong["problems"]} == {"seed", "nonsense"}
    assert api.get("/")["count"] == 1 and api.get("/demo/revisions")["count"] == 1


def test_an_unusable_file_is_what_its_check_says(api: Api) -> None:
    api.create()
    (api.home / "config" / "demo" / "config.json").write_text("{")
    answer = api.post("/demo/validate")
    assert answer["is_valid"] is False and [problem["code"] for problem in answer["problems"]] == ["unreadable_file"]


def test_datasets_are_read_and_written_as_json(api: Api) -> None:
    api.create()
    shown = api.get("/demo/datasets")
    assert shown["path"] == "demo/multidatabackend.json" and [one["code"] for one in shown["problems"]] == ["not_found"]
    sets = shown["datasets"]
    sets[0]["repeats"] = 7
    for body in (sets, {"datasets": sets}):
        answer = api.call("PUT", "/demo/datasets", body)
        assert answer.status_code == 200, answer.content
        assert answer.json()["datasets"] == sets and answer.json()["message"] == "Datasets of 'demo' written"
    assert json.loads((api.home / "config" / "demo" / "multidatabackend.json").read_text()) == sets


@pytest.mark.parametrize("body", [[], {}, 3, "text", [3], [{}], [{"id": "a", "dataset_type": "image", "nonsense": 1}], {"a": [1]}, None])
def test_datasets_that_are_none_are_refused_and_the_old_ones_stay(api: Api, body: Any) -> None:
    api.create()
    before = api.get("/demo/datasets")
    status, problems = api.refused("PUT", "/demo/datasets", json.dumps(body))
    assert status in (400, 422) and problems
    assert api.get("/demo/datasets") == before and api.get("/demo/revisions")["count"] == 1


def test_secrets_of_datasets_are_hidden_and_kept(api: Api) -> None:
    api.create()
    sets = api.get("/demo/datasets")["datasets"]
    del sets[0]["instance_data_dir"]
    sets[0] |= {"type": "aws", "aws_bucket_name": "b", "aws_data_prefix": "x", "aws_access_key_id": "k", "aws_secret_access_key": "hidden!"}
    answer = api.call("PUT", "/demo/datasets", sets)
    assert answer.status_code == 200 and b"hidden!" not in answer.content
    shown = api.get("/demo/datasets")["datasets"]
    assert shown[0]["aws_secret_access_key"] == "***"
    assert api.call("PUT", "/demo/datasets", shown).status_code == 200
    assert not [one for one in api.get("/demo/datasets")["problems"] if one["code"] == "hidden_value"]


def test_a_datasets_file_that_is_something_else_is_not_shown(api: Api) -> None:
    api.create()
    (api.home / "notes.json").write_text('{"password": "hidden!"}')
    api.put("demo", data_backend_config="notes.json")
    answer = api.call("GET", "/demo/datasets")
    assert answer.status_code == 200 and answer.json()["datasets"] is None and b"hidden!" not in answer.content
    assert api.refused("PUT", "/demo/datasets", [{"id": "a", "dataset_type": "text_embeds", "type": "local"}])[0] == 422
    assert (api.home / "notes.json").read_text() == '{"password": "hidden!"}'


def test_revisions_are_listed_shown_compared_and_brought_back(api: Api) -> None:
    api.create()
    api.put("demo", seed=7)
    listed = api.get("/demo/revisions")
    assert [(one["number"], one["action"], one["actor"]) for one in listed["revisions"]] == [(2, "updated", "api"), (1, "created", "api")]
    one = api.get("/demo/revision?number=2")
    assert one["config"]["--seed"] == 7 and json.loads(one["datasets"]) == api.get("/demo/datasets")["datasets"]
    assert api.get("/demo/diff")["changed"] == [{"option": "seed", "from": None, "to": 7}]
    assert api.get("/demo/diff?from=2&to=1")["changed"] == [{"option": "seed", "from": 7, "to": None}]
    answer = api.post("/demo/restore", {"revision": 1})
    assert answer["message"] == "Configuration 'demo' is as it was in revision 1" and "--seed" not in answer["config"]
    assert api.call("DELETE", "/demo").status_code == 200
    assert api.post("/demo/restore", {"revision": 2})["config"]["--seed"] == 7


@pytest.mark.parametrize("number", ["0", "-1", "x", "99999999999", "1.5", "", "%D9%A1"])
def test_a_number_that_is_no_revision_is_refused(api: Api, number: str) -> None:
    api.create()
    assert api.refused("GET", f"/demo/diff?from={number}")[0] in (404, 422)
    assert api.refused("POST", "/demo/restore", {"revision": number})[0] in (404, 422)
    assert api.refused("GET", f"/demo/revision?number={number}")[0] in (404, 422)

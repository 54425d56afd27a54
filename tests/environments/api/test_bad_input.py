"""Whatever is sent, the answer says all that is wrong with it, nothing is written, and nothing ends in a 500."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from environments.api.parsers import LARGEST_BYTES
from environments.models import Environment, Revision
from tests.environments.conftest import NEW, Api


def everything(api: Api) -> tuple[Any, ...]:
    """All that a refused request must leave as it was."""
    files = {str(path): path.read_bytes() for path in sorted(api.home.rglob("*")) if path.is_file()}
    folders = sorted(str(path) for path in api.home.rglob("*") if path.is_dir())
    return files, folders, list(Environment.objects.values()), Revision.objects.count()


CREATE = [
    ({"name": None}, ("name", "null")),
    ({"name": ...}, ("name", "required")),
    ({"name": ""}, ("name", "blank")),
    ({"name": 7}, ("name", "invalid")),
    ({"name": ["a"]}, ("name", "invalid")),
    ({"name": "../x"}, ("name", "invalid_name")),
    ({"name": "a/b"}, ("name", "invalid_name")),
    ({"name": "a\0"}, ("name", "null_characters_not_allowed")),
    ({"name": "x" * 65}, ("name", "too_long")),
    ({"name": "x" * 10_000}, ("name", "max_length")),
    ({"name": "active"}, ("name", "reserved_name")),
    ({"name": "environments"}, ("name", "reserved_name")),
    ({"model_family": ...}, ("model_family", "missing")),
    ({"model_family": "pixelart"}, ("model_family", "unknown_family")),
    ({"model_family": "hunyuanvideo"}, ("model_family", "not_available")),
    ({"model_family": 3}, ("model_family", "invalid")),
    ({"model_flavour": "900M"}, ("model_flavour", "unknown_flavour")),
    ({"model_type": "embedding"}, ("model_type", "not_a_choice")),
    ({"model_type": "loras"}, ("model_type", "not_a_choice")),
    ({"lora_type": "standard"}, ("lora_type", "no_adapter")),
    ({"lora_type": "dora"}, ("lora_type", "not_a_choice")),
    ({"example": "nothing"}, ("example", "unknown_example")),
    ({"dataloader_path": "/etc/x.json"}, ("dataloader_path", "outside_roots")),
    ({"dataloader_path": "../" * 20 + "etc/x.json"}, ("dataloader_path", "outside_roots")),
    ({"dataloader_path": "x.txt"}, ("dataloader_path", "not_json")),
    ({"dataloader_path": "x" * 300}, ("dataloader_path", "too_long")),
    ({"create_dataloader": "perhaps"}, ("create_dataloader", "invalid")),
    ({"create_dataloader": 0}, ("create_dataloader", "invalid")),
    ({"description": {"a": 1}}, ("description", "invalid")),
    ({"flavour": "x"}, ("flavour", "unknown_field")),
]


@pytest.mark.parametrize(("changes", "problem"), CREATE, ids=lambda value: str(value)[:40])
def test_a_wrong_creation_is_refused_by_field(api: Api, changes: dict[str, Any], problem: tuple[str, str]) -> None:
    before = everything(api)
    body = {name: value for name, value in {**NEW, **changes}.items() if value is not ...}
    status, problems = api.refused("POST", "/environments", body)
    assert (status, problem in problems) == (422, True), problems
    assert everything(api) == before


def test_every_wrong_field_of_a_creation_is_reported_at_once(api: Api) -> None:
    body = {"name": "a/b", "model_family": "pixart_sigma", "model_flavour": "x", "model_type": "loras", "lora_type": "y", "example": "z"}
    _, problems = api.refused("POST", "/environments", body)
    assert {option for option, _ in problems} == {"name", "model_flavour", "model_type", "lora_type", "example"}


def test_an_unknown_flavour_is_answered_with_the_known_ones(api: Api) -> None:
    answer = api.call("POST", "/environments", {**NEW, "model_flavour": "x"}).json()
    assert "900M-1024-v0.6" in answer["problems"][0]["expected"]


def test_a_taken_name_is_a_conflict(api: Api) -> None:
    api.create()
    before = everything(api)
    assert api.refused("POST", "/environments", NEW) == (409, [("name", "exists")])
    assert everything(api) == before


def test_a_name_that_is_a_file_already_is_a_conflict(api: Api) -> None:
    (api.home / "config" / "once.json").write_text("[]")
    assert api.refused("POST", "/environments", {**NEW, "name": "once.json"}) == (409, [("name", "not_writable")])
    assert Environment.objects.count() == 0


PUT = [
    ({"learning_rate": "fast"}, ("learning_rate", "not_a_number")),
    ({"train_batch_size": 0}, ("train_batch_size", "out_of_range")),
    ({"train_batch_size": [1]}, ("train_batch_size", "not_a_whole_number")),
    ({"gradient_checkpointing": "maybe"}, ("gradient_checkpointing", "not_a_boolean")),
    ({"optimzer": "adamw_bf16"}, ("optimzer", "unknown_option")),
    ({"optimizer": "soap"}, ("optimizer", "not_available")),
    ({"peft_lora_mode": "singlora"}, ("peft_lora_mode", "not_available")),
    ({"crepa_enabled": True}, ("crepa_enabled", "not_available")),
    ({"model_family": "hunyuanvideo"}, ("model_family", "not_available")),
    ({"model_family": "x\0"}, ("model_family", "not_text")),
    ({"model_flavour": "x"}, ("model_flavour", "unknown_flavour")),
    ({"model_type": "loras"}, ("model_type", "not_a_choice")),
    ({"output_dir": "/etc/cron.d"}, ("output_dir", "outside_roots")),
    ({"output_dir": ""}, ("output_dir", "missing")),
    ({"output_dir": "state/runs"}, ("output_dir", "outside_roots")),
    ({"cache_dir_vae": "../../../../../../etc"}, ("cache_dir_vae", "outside_roots")),
    ({"data_backend_config": "x" * 256}, ("data_backend_config", "too_long")),
    ({"data_backend_config": {"a": 1}}, ("data_backend_config", "not_text")),
    ({"pretrained_model_name_or_path": "/etc/passwd"}, ("pretrained_model_name_or_path", "outside_roots")),
    ({"pretrained_model_name_or_path": "../../../../../../etc"}, ("pretrained_model_name_or_path", "outside_roots")),
    ({"validation_resolution": "big"}, ("validation_resolution", "not_a_size")),
    ({"optimizer_beta1": 0.9}, ("optimizer_beta2", "incomplete")),
]


@pytest.mark.parametrize(("changes", "problem"), PUT, ids=lambda value: str(value)[:40])
def test_a_wrong_option_is_refused_by_name(api: Api, changes: dict[str, Any], problem: tuple[str, str]) -> None:
    api.create()
    before = everything(api)
    config = api.get("/demo")["config"] | {f"--{name}": value for name, value in changes.items()}
    status, problems = api.refused("PUT", "/demo", {"name": "demo", "config": config})
    assert (status, problem in problems) == (422, True), problems
    assert everything(api) == before


def test_every_wrong_option_is_reported_at_once(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"] | {"--learning_rate": "x", "seed": -1, "nonsense": 1, "--output_dir": "/etc"}
    _, problems = api.refused("PUT", "/demo", {"config": config})
    assert {option for option, _ in problems} >= {"learning_rate", "seed", "nonsense", "output_dir"}


def test_two_spellings_with_two_values_are_refused_and_with_one_are_taken(api: Api) -> None:
    api.create()
    config = api.get("/demo")["config"]
    assert api.refused("PUT", "/demo", {"config": config | {"seed": 1, "--seed": 2}}) == (422, [("seed", "conflicting_values")])
    assert api.call("PUT", "/demo", {"config": config | {"seed": 1, "--seed": 1}}).status_code == 200


@pytest.mark.parametrize("config", [None, [], "x", 7, True, [["--seed", 1]]])
def test_a_configuration_that_is_no_object_is_refused(api: Api, config: Any) -> None:
    api.create()
    status, problems = api.refused("PUT", "/demo", {"config": config})
    assert status == 422 and problems[0][0] == "config"


@pytest.mark.parametrize("tags", ["x", [1], [None], {"a": 1}, [["a"]], ["x"] * 100, ["x" * 101], ["a\0"]])
def test_wrong_tags_are_refused(api: Api, tags: Any) -> None:
    api.create()
    status, problems = api.refused("PUT", "/demo", {"config": api.get("/demo")["config"], "tags": tags})
    assert status == 422 and problems[0][0].startswith("tags")


def test_a_body_for_another_name_is_refused(api: Api) -> None:
    api.create()
    body = {"name": "other", "config": api.get("/demo")["config"]}
    assert api.refused("PUT", "/demo", body) == (422, [("name", "other_name")])


@pytest.mark.parametrize("path", ["/nothing", "/nothing/export", "/%00", "/..%5c", "/" + "x" * 5000, "/%F0%9F%92%A9", "/a%0A"])
def test_unknown_addresses_answer_not_found(api: Api, path: str) -> None:
    assert api.refused("GET", path)[0] == 404


def test_not_found_says_the_name(api: Api) -> None:
    assert api.call("GET", "/nothing").json()["detail"] == "Configuration 'nothing' not found"
    for method, path in (("POST", "/nothing/activate"), ("POST", "/nothing/dataloader"), ("DELETE", "/nothing"), ("PUT", "/nothing")):
        assert api.refused(method, path)[0] == 404


def test_the_active_environment_is_not_deleted(api: Api) -> None:
    api.create()
    api.post("/demo/activate")
    before = everything(api)
    assert api.refused("DELETE", "/demo") == (409, [("name", "active")])
    assert everything(api) == before


@pytest.mark.parametrize("query", ["?config_type=nothing", "?config_type=", "?config_type=model%00"])
def test_an_unknown_kind_of_list_is_refused(api: Api, query: str) -> None:
    assert api.refused("GET", f"/{query}") == (422, [("config_type", "not_a_choice")])


def test_an_export_wants_true_or_false(api: Api) -> None:
    api.create()
    assert api.refused("GET", "/demo/export?include_metadata=perhaps") == (422, [("include_metadata", "not_a_boolean")])


BODIES = [
    "{",
    "",
    "null",
    "[]",
    "7",
    '"x"',
    "{'a': 1}",
    '{"name": NaN}',
    '{"name": "\\ud800"}',
    '{"\\ud800": 1}',
    b"\xff\xfe{}",
    "[" * 100_000,
    '{"a":' * 500 + "1" + "}" * 500,
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body[:20]))
def test_a_body_that_is_no_object_is_refused(api: Api, body: str | bytes) -> None:
    api.create()
    for method, path in (("POST", "/environments"), ("PUT", "/demo")):
        status, _ = api.refused(method, path, body)
        assert status in (400, 422)


def test_a_body_without_end_is_too_large(api: Api) -> None:
    assert api.refused("POST", "/environments", '{"name": "' + "x" * LARGEST_BYTES + '"}')[0] == 413


def test_another_kind_of_body_is_unsupported(api: Api) -> None:
    assert api.refused("POST", "/environments", "<name/>", content_type="application/xml")[0] == 415


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "/"), ("PUT", "/environments"), ("POST", "/active"), ("GET", "/demo/activate"), ("PATCH", "/demo")]
)
def test_another_method_is_not_allowed(api: Api, method: str, path: str) -> None:
    api.create()
    assert api.refused(method, path)[0] == 405


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"path": "/etc/x.json"}, ("path", "outside_roots")),
        ({"path": "x"}, ("path", "not_json")),
        ({"path": 7}, ("path", "invalid")),
        ({"include_defaults": "x"}, ("include_defaults", "invalid")),
        ({"include_defaults": 1}, ("include_defaults", "invalid")),
        ({"other": 1}, ("other", "unknown_field")),
    ],
)
def test_a_wrong_regeneration_is_refused(api: Api, body: dict[str, Any], problem: tuple[str, str]) -> None:
    api.create()
    before = everything(api)
    assert api.refused("POST", "/demo/dataloader", body) == (422, [problem])
    assert everything(api) == before


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\0", "\ud800", "x" * 300, "../..", "/etc/passwd", "<b>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [*NEW, "description", "example", "lora_type", "dataloader_path", "create_dataloader", "config", "tags", "path", "include_defaults"]
)
options = st.sampled_from(
    [
        "--seed",
        "learning_rate",
        "--output_dir",
        "data_backend_config",
        "--model_family",
        "--optimizer_config",
        "lora_rank",
        "--resume_from_checkpoint",
    ]
)
bodies = (
    st.dictionaries(fields, json_values, max_size=6)
    | st.fixed_dictionaries({"config": st.dictionaries(options | st.text(max_size=10), json_values, max_size=6)})
    | json_values
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies, st.sampled_from([("POST", "/environments"), ("PUT", "/demo"), ("POST", "/demo/dataloader"), ("POST", "/demo/activate")]))
def test_no_body_ends_in_an_error_of_the_server(api: Api, body: Any, call: tuple[str, str]) -> None:
    if not Environment.objects.filter(name="demo").exists():
        api.create()
    answer = api.call(*call, json.dumps(body))
    assert answer.status_code in (200, 400, 409, 422), answer.content
    assert answer.json()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40), st.sampled_from(["GET", "PUT", "DELETE", "POST"]))
def test_no_name_ends_in_an_error_of_the_server(api: Api, name: str, method: str) -> None:
    from urllib.parse import quote

    path = quote(name.encode("utf-8", "replace"), safe="")
    assert api.call(method, f"/{path}").status_code in (200, 404, 405, 422)

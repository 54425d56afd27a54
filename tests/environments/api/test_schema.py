"""The OpenAPI schema tells of every call, every answer and every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator

from environments import urls

ALWAYS = {"200", "400", "403", "406"}
NAMED = ALWAYS | {"404", "405"}
WITH_BODY = {"413", "415", "422"}
CALLS = {
    ("post", "/api/configs"): ALWAYS | WITH_BODY | {"409"},
    ("get", "/api/configs/templates"): ALWAYS,
    ("post", "/api/configs/from-template"): ALWAYS | WITH_BODY | {"404", "409"},
    ("post", "/api/configs/validate"): ALWAYS | WITH_BODY,
    ("post", "/api/configs/{name}/validate"): NAMED,
    ("post", "/api/configs/{name}/copy"): NAMED | WITH_BODY | {"409"},
    ("post", "/api/configs/{name}/rename"): NAMED | WITH_BODY | {"409"},
    ("get", "/api/configs/{name}/datasets"): NAMED,
    ("put", "/api/configs/{name}/datasets"): NAMED | WITH_BODY | {"409"},
    ("get", "/api/configs/{name}/revisions"): NAMED,
    ("get", "/api/configs/{name}/revision"): NAMED | {"422"},
    ("get", "/api/configs/{name}/diff"): NAMED | {"422"},
    ("post", "/api/configs/{name}/restore"): NAMED | WITH_BODY | {"409"},
    ("get", "/api/configs"): ALWAYS | {"422"},
    ("get", "/api/configs/examples"): ALWAYS,
    ("get", "/api/configs/active"): ALWAYS,
    ("post", "/api/configs/environments"): ALWAYS | WITH_BODY | {"409"},
    ("post", "/api/configs/import"): ALWAYS | WITH_BODY | {"409"},
    ("get", "/api/configs/{name}"): NAMED,
    ("put", "/api/configs/{name}"): NAMED | WITH_BODY | {"409"},
    ("delete", "/api/configs/{name}"): NAMED | {"409"},
    ("post", "/api/configs/{name}/activate"): NAMED | {"409"},
    ("get", "/api/configs/{name}/export"): NAMED | {"422"},
    ("post", "/api/configs/{name}/dataloader"): NAMED | WITH_BODY | {"409"},
    ("get", "/api/configs/environments/{name}/lycoris"): NAMED | {"422"},
    ("put", "/api/configs/environments/{name}/lycoris"): NAMED | WITH_BODY | {"409"},
    ("post", "/api/configs/lycoris/validate"): ALWAYS | WITH_BODY,
    ("get", "/api/folders"): ALWAYS | {"422"},
    ("post", "/api/folders/{folder}/images"): ALWAYS | WITH_BODY,
    ("get", "/api/datasets/{environment}/{dataset}/images"): ALWAYS | {"404", "422"},
    ("get", "/api/datasets/{environment}/{dataset}/thumbnail"): ALWAYS | {"404", "422"},
    ("put", "/api/datasets/{environment}/{dataset}/caption"): ALWAYS | WITH_BODY | {"404"},
}


@pytest.fixture(scope="module")
def schema() -> Any:
    from django.urls import include, path

    patterns = [
        path("api/configs", include(urls)),
        path("api/folders", include(urls.folder_urlpatterns)),
        path("api/datasets", include(urls.dataset_urlpatterns)),
    ]
    return SchemaGenerator(patterns=patterns).get_schema(request=None, public=True)


def test_every_call_is_described_once_under_its_tag(schema: Any) -> None:
    reported = {(method, path): operation for path, methods in schema["paths"].items() for method, operation in methods.items()}
    assert set(reported) == set(CALLS)
    for call, operation in reported.items():
        assert operation["tags"] == ["configurations"] and operation["summary"], call


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]}")
def test_answers_and_refusals_have_their_shape(schema: Any, call: tuple[str, str]) -> None:
    method, path = call
    responses = schema["paths"][path][method]["responses"]
    assert set(responses) == CALLS[call]
    for status, response in responses.items():
        kind = "image/webp" if status == "200" and path.endswith("/thumbnail") else "application/json"
        assert list(response["content"]) == [kind]
        reference = response["content"][kind]["schema"].get("$ref", "")
        assert reference.endswith("/Error") == (status != "200"), (status, reference)


def test_calls_with_nested_bodies_are_sent_json_alone(schema: Any) -> None:
    bodies = {
        operation["operationId"]: list(operation["requestBody"]["content"])
        for calls in schema["paths"].values()
        for operation in calls.values()
        if "requestBody" in operation
    }
    assert bodies.pop("folder_images_upload") == ["multipart/form-data"]
    assert bodies and all(kinds == ["application/json"] for kinds in bodies.values())


def test_bodies_are_described_field_by_field(schema: Any) -> None:
    shapes = schema["components"]["schemas"]
    fields = {
        "name",
        "model_family",
        "model_flavour",
        "model_type",
        "lora_type",
        "description",
        "example",
        "dataloader_path",
        "create_dataloader",
        "images",
        "trigger_word",
        "options",
    }
    assert set(shapes["CreateEnvironment"]["properties"]) == fields
    assert set(shapes["Problem"]["properties"]) == {"option", "code", "message", "got", "expected", "hint"}
    config_type = schema["paths"]["/api/configs"]["get"]["parameters"][0]
    assert set(config_type["schema"]["enum"]) == {"model", "dataloader", "lycoris", "webhook"}

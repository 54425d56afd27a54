"""The OpenAPI schema tells of every call, every answer and every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator

from environments import urls

CALLS = {
    ("get", "/api/configs"): {"200", "403", "422"},
    ("get", "/api/configs/examples"): {"200", "403"},
    ("get", "/api/configs/active"): {"200", "403"},
    ("post", "/api/configs/environments"): {"200", "400", "403", "409", "413", "415", "422"},
    ("get", "/api/configs/{name}"): {"200", "403", "404"},
    ("put", "/api/configs/{name}"): {"200", "400", "403", "404", "409", "413", "415", "422"},
    ("delete", "/api/configs/{name}"): {"200", "403", "404", "409"},
    ("post", "/api/configs/{name}/activate"): {"200", "403", "404"},
    ("get", "/api/configs/{name}/export"): {"200", "403", "404", "422"},
    ("post", "/api/configs/{name}/dataloader"): {"200", "400", "403", "404", "409", "413", "415", "422"},
    ("get", "/api/configs/environments/{name}/lycoris"): {"200", "403", "404", "422"},
    ("put", "/api/configs/environments/{name}/lycoris"): {"200", "400", "403", "404", "409", "413", "415", "422"},
    ("post", "/api/configs/lycoris/validate"): {"200", "400", "403", "413", "415"},
}


@pytest.fixture(scope="module")
def schema() -> Any:
    from django.urls import include, path

    return SchemaGenerator(patterns=[path("api/configs", include(urls))]).get_schema(request=None, public=True)


def test_every_call_is_told_once_under_its_tag(schema: Any) -> None:
    told = {(method, path): operation for path, methods in schema["paths"].items() for method, operation in methods.items()}
    assert set(told) == set(CALLS)
    for call, operation in told.items():
        assert operation["tags"] == ["configurations"] and operation["summary"], call


@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call[0]} {call[1]}")
def test_answers_and_refusals_have_their_shape(schema: Any, call: tuple[str, str]) -> None:
    method, path = call
    responses = schema["paths"][path][method]["responses"]
    assert set(responses) == CALLS[call]
    for status, response in responses.items():
        reference = response["content"]["application/json"]["schema"]["$ref"]
        assert reference.endswith("/Error") == (status != "200"), (status, reference)


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
    }
    assert set(shapes["CreateEnvironment"]["properties"]) == fields
    assert set(shapes["Problem"]["properties"]) == {"option", "code", "message", "got", "expected", "hint"}
    config_type = schema["paths"]["/api/configs"]["get"]["parameters"][0]
    assert set(config_type["schema"]["enum"]) == {"model", "dataloader", "lycoris", "webhook"}

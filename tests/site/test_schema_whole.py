"""The schema of the whole site: nothing ambiguous, nothing dangling, and valid JSON Schema throughout."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator


@pytest.fixture(scope="module")
def schema() -> Any:
    GENERATOR_STATS.reset()
    return SchemaGenerator().get_schema(request=None, public=True)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for part in node.values():
            yield from references(part)
    elif isinstance(node, list):
        for part in node:
            yield from references(part)


def operations(schema: Any) -> list[dict[str, Any]]:
    return [operation for calls in schema["paths"].values() for operation in calls.values()]


def test_the_schema_is_made_without_a_warning(schema: Any, capfd: pytest.CaptureFixture[str]) -> None:
    GENERATOR_STATS.reset()
    SchemaGenerator().get_schema(request=None, public=True)
    assert "Warning" not in capfd.readouterr().err


def test_every_operation_and_shape_has_a_name_of_its_own(schema: Any) -> None:
    names = [operation["operationId"] for operation in operations(schema)]
    assert len(names) == len(set(names))
    assert {"Message", "RunMessage"} <= set(schema["components"]["schemas"])


def test_every_reference_leads_somewhere_and_every_shape_is_json_schema(schema: Any) -> None:
    shapes = schema["components"]["schemas"]
    assert {reference.rpartition("/")[2] for reference in references(schema)} <= set(shapes)
    for shape in shapes.values():
        Draft202012Validator.check_schema(shape)


def test_the_schema_has_version_3_1_and_a_title(schema: Any) -> None:
    assert schema["openapi"].startswith("3.1")
    assert schema["info"]["title"] == "SimpleTuner" and schema["info"]["version"]
    assert {tag["name"] for tag in schema["tags"]} == {"configurations", "training"}
    assert all(set(operation["tags"]) <= {"configurations", "training"} for operation in operations(schema))


def test_a_client_needs_neither_a_login_nor_an_address(schema: Any) -> None:
    assert schema["security"] == [] and not any("security" in operation for operation in operations(schema))
    assert schema["servers"][0]["url"] == "/"
    assert {"contact", "license"} <= set(schema["info"])


def test_answers_that_are_no_json_are_declared_as_what_they_are(schema: Any) -> None:
    kinds = {operation["operationId"]: list(operation["responses"]["200"]["content"]) for operation in operations(schema)}
    assert kinds["training_job_log"] == ["text/plain"]
    assert kinds["training_events_stream"] == ["text/event-stream"]
    assert kinds["training_job_grid"] == ["image/png"] and "image/png" in kinds["training_job_media"]
    assert kinds["training_validate"] == ["application/json", "text/html"]


def test_no_address_can_be_taken_for_another(schema: Any) -> None:
    """As a linter sees it: two addresses whose parts are equal, or of which one is a parameter."""
    addresses = [path.strip("/").split("/") for path in schema["paths"]]
    for place, one in enumerate(addresses):
        for other in addresses[place + 1 :]:
            pairs = list(zip(one, other, strict=False)) if len(one) == len(other) else [("a", "b")]
            alike = [a == b or "{" in a or "{" in b for a, b in pairs]
            mixed = any("{" in a and "{" not in b for a, b in pairs) and any("{" in b and "{" not in a for a, b in pairs)
            assert not (all(alike) and mixed), (one, other)


def test_a_body_with_a_required_field_is_required(schema: Any) -> None:
    bodies = {one["operationId"]: one["requestBody"] for one in operations(schema) if "requestBody" in one}
    assert bodies["training_queue_move"].get("required") and bodies["folder_images_upload"].get("required")
    assert not bodies["training_cancel"].get("required"), "the current run is meant without one"


def test_a_server_with_a_token_declares_how_it_is_sent(schema: Any, settings: Any) -> None:
    assert schema["security"] == [] and "securitySchemes" not in schema["components"]
    settings.NEEDS_TOKEN = True
    with_token = SchemaGenerator().get_schema(request=None, public=True)
    assert [list(one) for one in with_token["security"]] == [["bearer"], ["key"]]
    assert with_token["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert with_token["components"]["securitySchemes"]["key"]["name"] == "X-API-Key"


def test_a_server_with_a_token_declares_its_refusals_and_no_other_does(schema: Any, settings: Any) -> None:
    assert not any({"401", "429"} & set(one["responses"]) for one in operations(schema))
    settings.NEEDS_TOKEN = True
    for one in operations(SchemaGenerator().get_schema(request=None, public=True)):
        answers = one["responses"]
        assert list(answers) == sorted(answers) and {"401", "429"} <= set(answers), one["operationId"]
        assert answers["401"]["content"] == answers["403"]["content"] and "Retry-After" in answers["429"]["description"]

"""Describes each call for the OpenAPI schema. ``training/api/schema.py`` adds the parts for runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, TypeVar

from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from environments.api.pages import titled
from environments.api.representations import CONFIG_TYPES
from environments.api.serializers import ErrorSerializer
from environments.create.names import LONGEST, SCHEMA_PATTERN

F = TypeVar("F", bound=Callable[..., Any])
Responses = dict[tuple[int, str], Any]

JSON, HTML = "application/json", "text/html"
TOKEN_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""The two headers in which programs send a server's token."""
FORM, WEBP = "multipart/form-data", "image/webp"
EVERYWHERE = (400, 403, 406)
"""Refusals of every call: an address with too many fields, the guard, and an ``Accept`` without a supported type."""
WITHOUT_TOKEN = {"401": "No token, or a wrong one.", "429": "Too many wrong tokens came from this address: see `Retry-After`."}
"""Refusals of every call of a server with a token."""
WITH_BODY = (400, 413, 415, 422)

SECOND_ADDRESSES = ("/api/configs/webhooks", "/api/configs/compatibility")

NAME_SHAPE: dict[str, Any] = {"type": "string", "pattern": SCHEMA_PATTERN, "minLength": 1, "maxLength": LONGEST}
NAME = OpenApiParameter("name", NAME_SHAPE, OpenApiParameter.PATH, description="Name of the environment.")
CONFIG_TYPE = OpenApiParameter("config_type", str, enum=CONFIG_TYPES, default="model", description="Which kind of configuration to list.")
INCLUDE_METADATA = OpenApiParameter("include_metadata", bool, default=True, description="Whether to add `_metadata`.")
CONFIG_SHAPE: dict[str, Any] = {
    "type": "object",
    "description": "`--option`: typed value.",
    "propertyNames": {"pattern": "^--"},
    "additionalProperties": True,
}
EXPORT_SHAPE: dict[str, Any] = {
    "oneOf": [
        {
            "type": "object",
            "title": "WithMetadata",
            "required": ["_metadata", "config"],
            "properties": {"_metadata": {"$ref": "#/components/schemas/Meta"}, "config": CONFIG_SHAPE},
        },
        {"title": "BareConfig", **CONFIG_SHAPE},
    ]
}


def refusals(codes: Iterable[int], shape: Any, kinds: Iterable[str] = (JSON,)) -> Responses:
    """The same shape for every code; in HTML it is text."""
    return {(code, kind): shape if kind == JSON else SNIPPET for code in codes for kind in kinds}


SNIPPET = OpenApiResponse(response={"type": "string"}, description="An HTML snippet (the default); JSON with `Accept: application/json`.")


def described(
    operation: str,
    summary: str,
    answer: Any,
    *errors: int,
    request: Any = None,
    parameters: list[OpenApiParameter] | None = None,
    tag: str = "configurations",
    sent_as: str = JSON,
    answered_as: str = JSON,
) -> Callable[[F], F]:
    """Tag, summary, answer and refusals of a call. It takes and returns JSON unless another media type is named; refusals are JSON."""
    responses: Responses = {(200, answered_as): answer, **refusals(sorted({*EVERYWHERE, *errors}), ErrorSerializer)}
    body = None if request is None else {sent_as: request}
    schema: Callable[[F], F] = extend_schema(
        operation_id=operation, summary=summary, tags=[tag], request=body, responses=responses, parameters=parameters or []
    )
    return titled(summary, schema)


def without_last_slash(endpoints: list[tuple[str, str, str, Any]]) -> list[tuple[str, str, str, Any]]:
    """Show addresses without their optional last slash, as the documentation does."""
    return [(path.rstrip("/") or path, regex, method, callback) for path, regex, method, callback in endpoints]


def without_second_addresses(endpoints: list[tuple[str, str, str, Any]]) -> list[tuple[str, str, str, Any]]:
    """Describe calls with two addresses at one of them."""
    return [endpoint for endpoint in endpoints if not endpoint[0].startswith(SECOND_ADDRESSES)]


def with_required_bodies(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Declare a body as required where one of its fields is; drf-spectacular does so for serializers only.

    A body of several media types stays optional: openapi-python-client makes a module of it that cannot be imported.
    """
    for calls in result["paths"].values():
        for call in calls.values():
            body = call.get("requestBody", {})
            shapes = [content["schema"] for content in body.get("content", {}).values()]
            if len(shapes) == 1 and shapes[0].get("required"):
                body["required"] = True
    return result


def with_security(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Declare once what calls need: the token of a server that has one, else nothing, so that generated clients ask for none."""
    for calls in result["paths"].values():
        for call in calls.values():
            call.pop("security", None)
    if not settings.NEEDS_TOKEN:
        return {**result, "security": []}
    for calls in result["paths"].values():
        for call in calls.values():
            answers = call["responses"]
            added = {code: {**deepcopy(answers["403"]), "description": text} for code, text in WITHOUT_TOKEN.items() if "403" in answers}
            call["responses"] = dict(sorted({**answers, **added}.items()))
    components = {**result.get("components", {}), "securitySchemes": TOKEN_SCHEMES}
    return {**result, "components": components, "security": [{name: []} for name in TOKEN_SCHEMES]}

"""How each call is described in the OpenAPI schema; form fields come from the option registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from trainer_engine.contract.options import REGISTRY, OptionSpec
from training import serializers

F = TypeVar("F", bound=Callable[..., Any])
TYPES: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "mapping": {"type": "string", "example": "eps=1e-8,weight_decay=0.01"},
    "json": {"type": "string", "contentMediaType": "application/json"},
}
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded", "application/json")
KEY_HEADER = OpenApiParameter(
    "Idempotency-Key", str, OpenApiParameter.HEADER, description="Sending the same key again gives the same job again."
)
JOB_ID = OpenApiParameter("job_id", str, description="Which job; the running one, else the last, where it is left out.")
SINCE = OpenApiParameter("since_index", int, default=0, description="First index wanted.")
LIMIT = OpenApiParameter("limit", int, default=2000, description="Most events in one answer.")
MEDIA = OpenApiParameter("media", str, enum=["data", "url"], default="data", description="Images as data URIs or as links.")
OUTPUT_DIR = OpenApiParameter("output_dir", str, description="Output folder of a job of this server; no other folder is looked at.")
HTML = OpenApiResponse(response={"type": "string"}, description="An HTML snippet (the default); JSON with `Accept: application/json`.")


def field(spec: OptionSpec) -> dict[str, Any]:
    """One form field."""
    shape: dict[str, Any] = {**TYPES[spec.kind], "description": spec.help}
    if spec.choices:
        shape["enum"] = list(spec.choices)
    if spec.default is not None and spec.kind != "mapping":
        shape["default"] = spec.default
    shape.update({BOUNDS[sign]: limit for sign, limit in spec.bounds.items()})
    return shape


@cache
def option_fields() -> dict[str, Any]:
    """The form of validate and start: every option, with dashes as on a command line."""
    properties = {f"--{name}": field(spec) for name, spec in REGISTRY.items()}
    return {
        "type": "object",
        "description": "Names work with and without dashes. What is left out comes from the active environment.",
        "properties": properties,
        "additionalProperties": True,
    }


def forms(shape: dict[str, Any]) -> dict[str, Any]:
    """The same fields as multipart, urlencoded and JSON."""
    return dict.fromkeys(FORM_TYPES, shape)


JOB_FORM: dict[str, Any] = {"type": "object", "properties": {"job_id": {"type": "string", "format": "uuid"}}}


def described(
    operation: str,
    summary: str,
    answer: Any,
    *errors: int,
    html: bool = False,
    request: Any = None,
    parameters: list[OpenApiParameter] | None = None,
    refused: Any = None,
    media_type: str = "application/json",
) -> Callable[[F], F]:
    """Tag, summary, answer and refusals of one call."""
    responses: dict[Any, Any] = {(200, media_type): answer}
    if html:
        responses[(200, "text/html")] = HTML
    for code in (403, *errors):
        responses[(code, "application/json")] = refused if code == 422 and refused is not None else serializers.RefusalSerializer
        if html and code != 403:
            responses[(code, "text/html")] = HTML
    return extend_schema(
        operation_id=operation, summary=summary, tags=["training"], request=request, responses=responses, parameters=parameters or []
    )

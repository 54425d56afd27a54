"""Describes each call for the OpenAPI schema; form fields come from the option registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from drf_spectacular.utils import OpenApiParameter, extend_schema

from environments.api.pages import titled
from environments.api.schema import EVERYWHERE, HTML, JSON, SNIPPET, refusals
from trainer_engine.config.options import REGISTRY, OptionSpec
from training.api import serializers
from training.api.parse import DEFAULT_PAGE, LARGEST_INDEX, LARGEST_PAGE, LARGEST_PLACE, UUID_OR_EMPTY
from training.api.renderers import FORMATS

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
FORM_TYPES = (JSON, "multipart/form-data", "application/x-www-form-urlencoded")
KEY_HEADER = OpenApiParameter(
    "Idempotency-Key", str, OpenApiParameter.HEADER, description="Sending the same key again gives the same job again."
)
NO_FORMAT = OpenApiParameter("format", exclude=True)
"""Hides ``?format=`` for calls with one format, where only the browsable API uses it."""
FORMAT = OpenApiParameter(
    "format",
    str,
    enum=FORMATS,
    default="json",
    description="Clients generated from this schema send `json`. Without it `Accept` decides, and `*/*` means an HTML snippet.",
)
JOB_PATH = OpenApiParameter("job_id", {"type": "string", "format": "uuid"}, OpenApiParameter.PATH, description="Id of the job.")
JOB_ID = OpenApiParameter(
    "job_id", {"type": "string", "pattern": UUID_OR_EMPTY}, description="Which job; the running one, else the last, if it is left out."
)
INDEX: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": LARGEST_INDEX}
SINCE = OpenApiParameter("since_index", {**INDEX, "default": 0}, description="First index wanted.")
LIMIT = OpenApiParameter(
    "limit", {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE, "default": DEFAULT_PAGE}, description="Most events in one answer."
)
MEDIA = OpenApiParameter("media", str, enum=["data", "url", ""], default="data", description="Images as data URIs or as links.")
OUTPUT_DIR = OpenApiParameter("output_dir", str, description="Output folder of a job of this server; no other folder is read.")
EVENT_INDEX = OpenApiParameter("index", INDEX, OpenApiParameter.PATH, description="Index of the event.")
PLACE = OpenApiParameter("place", INDEX, OpenApiParameter.PATH, description="Which image of the event, from 0.")
RANGE = OpenApiParameter("Range", str, OpenApiParameter.HEADER, description="A part of the file, such as `bytes=0-1023`.")
CHECKPOINT = OpenApiParameter("name", str, OpenApiParameter.PATH, description="`checkpoint-` and the step.")
EXAMPLE = {"--max_train_steps": 200, "--num_train_epochs": 0}
"""The form that Swagger shows first; without it, Swagger fills in the default of every option."""
BINARY: dict[str, Any] = {"type": "string", "format": "binary"}


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
        "description": "Names work with and without dashes. Missing options come from the active environment.",
        "properties": properties,
        "additionalProperties": True,
        "example": EXAMPLE,
    }


def forms(shape: dict[str, Any]) -> dict[str, Any]:
    """The same fields as JSON, multipart and urlencoded."""
    return dict.fromkeys(FORM_TYPES, shape)


JOB_FORM: dict[str, Any] = {"type": "object", "properties": {"job_id": {"type": ["string", "null"], "pattern": UUID_OR_EMPTY}}}
PLACE_FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"position": {"type": "integer", "minimum": 1, "maximum": LARGEST_PLACE, "description": "1: before all that wait."}},
    "required": ["position"],
}
CHECKPOINTS_FORM: dict[str, Any] = {**JOB_FORM, "properties": {**JOB_FORM["properties"], "output_dir": {"type": ["string", "null"]}}}


def described(
    operation: str,
    summary: str,
    answer: Any,
    *errors: int,
    html: bool = False,
    request: Any = None,
    parameters: list[OpenApiParameter] | None = None,
    refused: Any = serializers.RefusalSerializer,
    media_types: tuple[str, ...] = (JSON,),
    has_parts: bool = False,
) -> Callable[[F], F]:
    """Tag, summary, answer and refusals of one call.

    ``html`` adds the answer as a snippet, ``refused`` is the shape of 422, ``media_types`` are the types of the answer, and with
    ``has_parts`` a Range header gets a part of it.
    """
    kinds = (JSON, HTML) if html else (JSON,)
    others = sorted({*EVERYWHERE, *errors} - {403, 422})
    statuses = (200, 206) if has_parts else (200,)
    responses: dict[Any, Any] = {(status, kind): answer for status in statuses for kind in media_types}
    responses |= {(200, HTML): SNIPPET} if html else {}
    responses |= refusals((403,), serializers.RefusalSerializer) | refusals(others, serializers.RefusalSerializer, kinds)
    responses |= refusals((422,), refused, kinds) if 422 in errors else {}
    schema: Callable[[F], F] = extend_schema(
        operation_id=operation,
        summary=summary,
        tags=["training"],
        request=request,
        responses=responses,
        parameters=[*(parameters or []), *([RANGE] if has_parts else []), FORMAT if html else NO_FORMAT],
    )
    return titled(summary, schema)

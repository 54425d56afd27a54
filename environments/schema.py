"""How each call is described in the OpenAPI schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from drf_spectacular.utils import OpenApiParameter, extend_schema

from environments.answers import CONFIG_TYPES
from environments.serializers import ErrorSerializer

F = TypeVar("F", bound=Callable[..., Any])

CONFIG_TYPE = OpenApiParameter("config_type", str, enum=CONFIG_TYPES, default="model", description="Which kind of configuration to list.")
INCLUDE_METADATA = OpenApiParameter("include_metadata", bool, default=True, description="Whether to add `_metadata`.")


def described(
    operation: str, summary: str, answer: Any, *errors: int, request: Any = None, parameters: list[OpenApiParameter] | None = None
) -> Callable[[F], F]:
    """Tag, summary, answer and refusals of one call."""
    responses: dict[int, Any] = {200: answer, 403: ErrorSerializer, **dict.fromkeys(errors, ErrorSerializer)}
    return extend_schema(
        operation_id=operation, summary=summary, tags=["configurations"], request=request, responses=responses, parameters=parameters or []
    )


def without_last_slash(endpoints: list[tuple[str, str, str, Any]]) -> list[tuple[str, str, str, Any]]:
    """Show addresses that answer with and without a slash at their end as the documentation writes them: without."""
    return [(path.rstrip("/") or path, regex, method, callback) for path, regex, method, callback in endpoints]

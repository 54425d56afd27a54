"""Parsers of request bodies. JSON is read with the parser of files, so that both refuse the same things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.utils.http import parse_header_parameters
from rest_framework.exceptions import APIException, ErrorDetail, ParseError, ValidationError
from rest_framework.parsers import BaseParser, DataAndFiles, MultiPartParser
from rest_framework.renderers import JSONRenderer

from environments.files.json_text import BadJson, parse_json

LARGEST_BYTES = 1024 * 1024
MARGIN_BYTES = 8
"""Length of a multipart body without fields, less its boundary."""


class BodyTooLarge(APIException):
    """The body is longer than any configuration."""

    status_code = 413
    default_detail = f"The body is larger than {LARGEST_BYTES // 1024**2} MiB."


class JsonBody(BaseParser):
    """``application/json``. Raises ParseError (400) for JSON that cannot be stored, BodyTooLarge (413)."""

    media_type = "application/json"
    renderer_class = JSONRenderer

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        content = stream.read(LARGEST_BYTES + 1)
        if len(content) > LARGEST_BYTES:
            raise BodyTooLarge
        try:
            return parse_json(content)
        except BadJson as error:
            raise ParseError(
                f"The body is {error}." if str(error).startswith("not") else f"The body is JSON that cannot be stored: {error}."
            ) from error


class FormBody(MultiPartParser):
    """``multipart/form-data``. Raises ValidationError (422) for a body without any field."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> DataAndFiles[Any, Any]:
        _, parameters = parse_header_parameters(media_type or "")
        empty_bytes = len(parameters.get("boundary", "")) + MARGIN_BYTES
        found = super().parse(stream, media_type, parser_context)
        if int(stream.META.get("CONTENT_LENGTH") or 0) > empty_bytes and not found.data and not found.files:
            raise ValidationError(
                {"body": ErrorDetail("The form holds no field. Does its boundary match the Content-Type?", code="no_field")}
            )
        return found

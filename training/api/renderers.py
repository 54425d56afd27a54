"""HTML snippets by default, JSON for programs that ask for it, the browsable API for browsers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.template.loader import render_to_string
from rest_framework.exceptions import NotAcceptable
from rest_framework.negotiation import BaseContentNegotiation, DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from environments.api.pages import ApiPageRenderer

ERROR_TEMPLATE = "training/refused.html"
WHOLE_PAGE = "training/snippet_page.html"
"""Around a snippet that a browser shows by itself."""
FORMATS = ("json", "snippet", "api")
"""Values of ``?format=``, which wins over ``Accept``."""


def _means_json(request: Request, accept: str) -> bool:
    return "application/json" in accept or (request.method == "OPTIONS" and "xhtml" not in accept)


class Answer(Response):
    """An answer that can also be rendered as an HTML snippet."""

    def __init__(self, data: Mapping[str, Any], *, template: str, context: Mapping[str, Any] | None = None, status: int = 200) -> None:
        super().__init__(data, status=status)
        self.snippet = template
        self.snippet_context = dict(context or {})


class SnippetRenderer(BaseRenderer):
    """Renders an HTML fragment for a page; every text from users is escaped."""

    media_type = "text/html"
    format = "snippet"
    charset = "utf-8"

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None) -> str:
        context = renderer_context or {}
        response = context.get("response")
        if isinstance(response, Answer):
            snippet = render_to_string(response.snippet, {"data": data, **response.snippet_context})
        else:
            title = getattr(context.get("view"), "refusal", "Request Refused")
            snippet = render_to_string(ERROR_TEMPLATE, {"title": title, "data": data})
        request = context.get("request")
        if request is not None and request.headers.get("Sec-Fetch-Dest") == "document":
            return render_to_string(WHOLE_PAGE, {"snippet": snippet})
        return snippet


class PageRenderer(ApiPageRenderer):
    """The browsable API. It shows the answer as JSON, not as a snippet."""

    def get_default_renderer(self, view: Any) -> BaseRenderer:
        return JSONRenderer()

    def get_raw_data_form(self, data: Any, view: Any, method: str, request: Request) -> Any:
        """The raw form, filled with the view's initial JSON body if it has one."""
        form = super().get_raw_data_form(data, view, method, request)
        initial_form = getattr(view, "initial_form", None)
        if method == "POST" and form is not None and initial_form is not None:
            form.fields["_content"].initial = json.dumps(initial_form(), indent=2, ensure_ascii=False)
        return form


class FileNegotiation(DefaultContentNegotiation):
    """For answers that are files: they are sent whatever the client accepts; refusals are JSON."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> tuple[Any, str]:
        try:
            chosen: tuple[Any, str] = super().select_renderer(request, renderers, format_suffix)
        except NotAcceptable:
            return renderers[0], renderers[0].media_type
        return chosen


class SnippetNegotiation(BaseContentNegotiation):
    """``*/*`` selects HTML, ``application/json`` JSON; a browser that opens the page gets the browsable API."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        content_type = (request.content_type or "").split(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == content_type), None)

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> tuple[Any, str]:
        accept = request.META.get("HTTP_ACCEPT", "*/*").lower()
        wanted = request.query_params.get("format")
        if wanted not in (None, *FORMATS):
            raise NotAcceptable(f"There is no format {wanted[:100]!r}: {', '.join(FORMATS)}.")
        if wanted == "json" or (wanted is None and _means_json(request, accept)):
            kind: type[BaseRenderer] = JSONRenderer
        elif wanted != "snippet" and ("application/xhtml+xml" in accept or wanted == "api"):
            kind = PageRenderer
        else:
            kind = SnippetRenderer
        renderer = next((one for one in renderers if isinstance(one, kind)), renderers[0])
        return renderer, renderer.media_type

"""The API in a browser: titles and links for people, and forms that send what the server understands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from django.utils.html import format_html
from django.utils.safestring import mark_safe
from rest_framework.renderers import BrowsableAPIRenderer, HTMLFormRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.formatting import remove_trailing_string

if TYPE_CHECKING:  # its module reads the settings, which name this one
    from rest_framework.views import APIView

F = TypeVar("F", bound=Callable[..., Any])
METHODS = ("get", "put", "post", "delete")
MOST_LINKS = 50
ONLY_POST = "This address is for sending. Fill in the form below; programs send JSON with POST."
OF_A_RUN = (("the run", ""), ("its log", "/log"), ("its files", "/files"))
JSON = "application/json"
FORMAT = "format"
"""Names a renderer in an address."""


def titled(summary: str, decorate: Callable[[F], F]) -> Callable[[F], F]:
    """Decorate a method of a view, and keep the summary of its call as the title of its page."""

    def decorator(function: F) -> F:
        found = decorate(function)
        found.title = summary  # type: ignore[attr-defined]
        return found

    return decorator


def view_name(view: APIView) -> str:
    """The title of a view's page: what its first call does."""
    titles = (getattr(getattr(view, method, None), "title", "") for method in METHODS)
    name = getattr(view, "page_title", "") or next(filter(None, titles), "")
    return name or remove_trailing_string(type(view).__name__, "View")


def links_in(data: object) -> Iterator[tuple[str, str]]:
    """(text, address) of what an answer names: environments, runs, and what an index lists."""
    if not isinstance(data, Mapping):
        return
    for row in (row for name in ("jobs", "running", "queued") for row in data.get(name) or () if isinstance(row, Mapping)):
        yield f"Run {row.get('number')}", f"/api/training/jobs/{row.get('job_id')}"
    for row in (row for row in data.get("configs") or () if isinstance(row, Mapping)):
        yield str(row.get("name")), f"/api/configs/{row.get('name')}"
    if isinstance(data.get("addresses"), Mapping):
        yield from ((str(text), str(address)) for address, text in data["addresses"].items())
    job = data.get("job_id")
    if job:
        yield from ((text, f"/api/training/jobs/{job}{end}") for text, end in OF_A_RUN)


class LabelledFormRenderer(HTMLFormRenderer):
    """Forms whose fields have names for who cannot see the labels beside them, which Django REST framework leaves unconnected."""

    def render_field(self, field: Any, parent_style: Mapping[str, Any]) -> Any:
        rendered = super().render_field(field, parent_style)
        named = format_html('name="{}"', field.name)
        return mark_safe(str(rendered).replace(named, format_html('{} aria-label="{}"', named, field.label or field.name), 1))


MENDED: Mapping[str, str] = MappingProxyType(
    {
        "<html>": '<html lang="en">',
        'title="Specify a format for the GET request">': 'title="Specify a format for the GET request" aria-label="Formats">',
        '<div class="content-main" role="main"  aria-label="main content">': '<div class="content-main">',
        '<pre class="prettyprint">': '<pre class="prettyprint" tabindex="0">',
    }
)
"""Markup of Django REST framework's template that lies in none of its blocks -> what everybody can use."""


class ApiPageRenderer(BrowsableAPIRenderer):
    """The browsable API."""

    form_renderer_class = LabelledFormRenderer

    def render(self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None) -> Any:
        page = super().render(data, accepted_media_type, renderer_context)
        for markup, mended in MENDED.items():
            page = page.replace(markup, mended)
        return page

    def get_context(self, data: Any, accepted_media_type: str | None, renderer_context: Mapping[str, Any]) -> dict[str, Any]:
        context: dict[str, Any] = super().get_context(data, accepted_media_type, renderer_context)
        response: Response = renderer_context["response"]
        is_form_only = _is_form_only(renderer_context["request"], response)
        if is_form_only:  # the status stays 405, as the schema says; the page greets with its form
            context["content"] = ONLY_POST
        return {**context, "is_form_only": is_form_only, "links": list(links_in(data))[:MOST_LINKS]}

    def get_raw_data_form(self, data: Any, view: Any, method: str, request: Request) -> Any:
        """The raw form. It sends JSON only: what is typed into it is no multipart body."""
        form = super().get_raw_data_form(data, view, method, request)
        media_types: Any = form.fields.get("_content_type") if form is not None else None
        if media_types is not None:
            media_types.choices = [(JSON, JSON)]
        return form


def _is_form_only(request: Request, response: Response) -> bool:
    """Whether a browser opens an address that only takes POST. A program that asks for ``?format=api`` gets the status 405."""
    is_opened = request.method == "GET" and FORMAT not in request.query_params
    return is_opened and response.status_code == 405 and "POST" in response.get("Allow", "")

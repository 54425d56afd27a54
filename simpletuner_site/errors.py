"""Turns errors into answers: JSON for programs, with the reason and without a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent
from django.http import HttpRequest, HttpResponse, JsonResponse
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError
from rest_framework.response import Response
from rest_framework.views import exception_handler

from simpletuner_site.edge.refusals import STYLE
from trainer_engine.contract.errors import Problem, limited


def answer_exception(error: Exception, context: dict[str, Any]) -> Response | None:
    """The answer of every API view to an exception: ``{"detail", "problems"}`` with the status of the exception.

    None for an unexpected exception, which Django logs and answers with 500.
    """
    response = exception_handler(error, context)
    if response is None:
        return None
    carried = getattr(error, "problems", None)
    if carried is not None:
        response.data = {"detail": _detail_of(error), "problems": [_as_dict(problem) for problem in carried]}
    elif isinstance(error, ValidationError):
        problems = limited(list(_field_problems(error.get_full_details())))
        response.data = {"detail": "; ".join(str(problem) for problem in problems), "problems": [p.as_dict() for p in problems]}
        response.status_code = 422
    else:
        response.data = {"detail": _detail_of(error, response.data), "problems": []}
    return response


def _as_dict(problem: Problem | Mapping[str, str]) -> dict[str, str]:
    return problem.as_dict() if isinstance(problem, Problem) else dict(problem)


def _detail_of(error: Exception, data: object = None) -> str:
    detail = error.detail if isinstance(error, APIException) else data
    if isinstance(detail, Mapping):
        detail = detail.get("detail", detail)
    return str(detail if isinstance(detail, (str, ErrorDetail)) else error)


def _field_problems(details: object, path: str = "") -> Iterable[Problem]:
    """DRF nests field errors; a problem names its field with dots."""
    if isinstance(details, Mapping) and {"message", "code"} <= set(details) and isinstance(details["message"], str):
        yield Problem.error(path or "body", str(details["code"]), str(details["message"]))
    elif isinstance(details, Mapping):
        for key, value in details.items():
            name = "" if key == "non_field_errors" else str(key)
            yield from _field_problems(value, ".".join(part for part in (path, name) if part))
    elif isinstance(details, (list, tuple)):
        for value in details:
            yield from _field_problems(value, path)


PAGES = {
    400: "The request could not be read.",
    403: "Access is refused.",
    404: "There is nothing at this address.",
    500: "The server failed; see its log.",
}


def _page(request: HttpRequest, status: int, sentence: str = "") -> HttpResponse:
    sentence = sentence or PAGES[status]
    if "text/html" in request.headers.get("Accept", ""):
        title = f"{status} · SimpleTuner"
        back = '<p><a href="/">SimpleTuner</a></p>'
        head = f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style>'
        page = f'<!doctype html><html lang="en">{head}<h1>{status}</h1><p>{sentence}</p>{back}</html>'
        return HttpResponse(page, status=status)
    detail = f"{sentence[:-1]}: {request.path}" if status == 404 else sentence
    return JsonResponse({"detail": detail, "problems": []}, status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _page(request, 400, _limit_of(exception))


def _limit_of(exception: Exception) -> str:
    """The limit that a request exceeds, in a sentence; empty for another reason. Django reads no further than the limit."""
    if isinstance(exception, TooManyFilesSent):
        return f"The request holds more than {settings.DATA_UPLOAD_MAX_NUMBER_FILES} files, the most that are taken at once."
    if isinstance(exception, TooManyFieldsSent):
        return f"The request holds more than {settings.DATA_UPLOAD_MAX_NUMBER_FIELDS:,} fields, the most that are read."
    if isinstance(exception, RequestDataTooBig):
        mebibytes = settings.DATA_UPLOAD_MAX_MEMORY_SIZE / 1024**2
        return f"The request holds more than {mebibytes:g} MiB beside its files, the most that are read."
    return ""


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _page(request, 403)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _page(request, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    return _page(request, 500)

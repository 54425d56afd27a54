"""Parses requests (forms, JSON, query parameters) into typed values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.core.files.uploadedfile import UploadedFile
from django.http import QueryDict
from rest_framework.request import Request

from trainer_engine.config.options import canonical_name
from training.errors import BadValue, JobNotFound
from training.jobs.queue import current_job, find_job
from training.models import Job

LARGEST_INDEX = 2**63 - 1
LARGEST_PLACE = 1_000_000
DEFAULT_PAGE = 2_000
LARGEST_PAGE = 10_000
UUID_OR_EMPTY = "^([0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})?$"
"""An empty ``job_id`` in an address means the current job, like a missing one."""
BROWSER_FIELDS = ("csrfmiddlewaretoken",)


def submitted(request: Request) -> dict[str, Any]:
    """The fields of a form (the last value of each wins) or the members of a JSON object; ``__x__`` fields are left out.

    Raises BadValue if the body is other JSON, contains a file, or contains characters that cannot be stored.
    """
    data = request.data
    if isinstance(data, QueryDict):
        fields: dict[str, Any] = {name: data[name] for name in data}
    elif isinstance(data, dict):
        fields = dict(data)
    else:
        raise BadValue("body", "The body is not a JSON object.", got=type(data).__name__, expected="an object of option: value")
    kept = {name: value for name, value in fields.items() if not _is_mark(name) and name not in BROWSER_FIELDS}
    for name, value in kept.items():
        if isinstance(value, UploadedFile):
            raise BadValue(name.lstrip("-"), f"{name} is a file; send its value as text.", got=value.name, expected="text")
        if "\0" in name or (isinstance(value, str) and "\0" in value):
            raise BadValue(name.replace("\0", "").lstrip("-"), "NUL characters cannot be stored.", got=None, expected="text without NUL")
    return kept


def named_fields(request: Request) -> dict[str, Any]:
    """The fields of ``submitted`` by the names that options have too: without leading dashes, with underscores. Raises BadValue."""
    return {canonical_name(name): value for name, value in submitted(request).items()}


def _is_mark(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and len(name) > 4


def wants_links(query: Mapping[str, Any]) -> bool:
    """Whether pictures of events are asked for as addresses (``media=url``), not inside of them. Raises BadValue."""
    form = query.get("media") or "data"
    if form not in ("data", "url"):
        raise BadValue("media", "media is neither data nor url.", got=form, expected="data or url")
    return bool(form == "url")


def whole_number(text: str | None, name: str, *, default: int, largest: int = LARGEST_INDEX, smallest: int = 0) -> int:
    """A whole number from a query parameter. Raises BadValue."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and smallest <= int(text) <= largest):
        expected = f"a whole number from {smallest} to {largest}"
        raise BadValue(name, f"{name} is not {expected}.", got=text, expected=expected)
    return int(text)


def place_in_queue(request: Request) -> int:
    """The ``position`` of the body, from 1. Raises BadValue."""
    value = request.data.get("position") if isinstance(request.data, dict) else None  # a form is a dictionary as well
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # JSON has one kind of number
    is_number = isinstance(value, (int, str)) and not isinstance(value, bool)
    text = str(value) if is_number else "" if value is None else repr(value)
    return whole_number(text, "position", default=1, smallest=1, largest=LARGEST_PLACE)


def named_job(text: str) -> Job:
    """Raises JobNotFound."""
    job = find_job(text)
    if job is None:
        raise JobNotFound(text)
    return job


def job_of(text: str | None) -> Job | None:
    """The job with this id; without an id the current or last one. Raises JobNotFound."""
    return named_job(text) if text else current_job()


def body_job(request: Request) -> Job | None:
    """The job of ``job_id`` in the body, else the current or last one. Raises JobNotFound, BadValue."""
    return job_of(text_or_none(named_fields(request), "job_id"))


def text_or_none(fields: Mapping[str, Any], name: str) -> str | None:
    """A text field; None if it is missing. Raises BadValue for other types."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise BadValue(name, f"{name} is not text.", got=value, expected="text")
    return value

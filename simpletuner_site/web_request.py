"""Twisted's HTTP without its own reading of forms."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from twisted.web import http


def leave_forms_to_django() -> None:
    """Twisted reads a posted form a second time, and answers one that it cannot read with an empty 400: Django says why, as JSON.

    Also names the statuses that Twisted does not know.
    """
    from daphne.http_protocol import WebRequest

    WebRequest.requestReceived = _request_received
    for status in HTTPStatus:
        http.RESPONSES.setdefault(status.value, status.phrase.encode())


def _request_received(request: Any, command: bytes, path: bytes, version: bytes) -> None:
    """What ``twisted.web.http.Request.requestReceived`` does, less the form."""
    request.content.seek(0, 0)
    request.args = {}
    request.method, request.uri, request.clientproto = command, path, version
    request.path = path.partition(b"?")[0]
    request.process()

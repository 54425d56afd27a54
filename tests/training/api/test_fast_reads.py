"""Status and events take a short way where a program asks, and say the same as on the long one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from rest_framework.test import APIClient

from tests.helpers.jobs import make_job
from training.api.fast_reads import QuickReads

pytestmark = pytest.mark.django_db(transaction=True)
DJANGO = b"from Django"


async def _django(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": DJANGO})


def ask(path: str, query: str = "", *, method: str = "GET", accept: str | None = None) -> tuple[int, bytes]:
    """(status, body) of one request."""
    headers = [(b"accept", accept.encode())] if accept else []
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
    said: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(QuickReads(_django)(scope, receive, send))
    return said[0]["status"], said[1]["body"]


@pytest.mark.parametrize("path", ["/api/training/status", "/api/training/events"])
@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
def test_a_program_gets_the_text_that_the_view_gives(path: str, accept: str | None, tmp_path: Path) -> None:
    make_job(tmp_path)
    status, body = ask(path, accept=accept)
    assert status == 200
    assert json.loads(body) == APIClient().get(path, HTTP_HOST="localhost").json()
    assert ask(f"{path}/", accept=accept) == (status, body)


@pytest.mark.parametrize(
    ("path", "query", "method", "accept"),
    [
        ("/api/training/status", "", "POST", None),
        ("/api/training/status", "", "HEAD", None),
        ("/api/training/status", "", "GET", "text/html,application/xhtml+xml,*/*"),
        ("/api/training/status", "format=api", "GET", None),
        ("/api/training/events", "since_index=minus", "GET", None),
        ("/api/training/events", "limit=0", "GET", None),
        ("/api/training/status", "&".join(["a"] * 5_500), "GET", None),
        ("/api/training/events", "&".join(["a=1"] * 5_500), "GET", None),
        ("/api/training/events", "job_id=nobody", "GET", None),
        ("/api/training/jobs", "", "GET", None),
        ("/api/configs", "", "GET", None),
    ],
)
def test_fast_reads_leave_other_requests_to_django(path: str, query: str, method: str, accept: str | None) -> None:
    assert ask(path, query, method=method, accept=accept) == (418, DJANGO)

"""Answers status and events as JSON without Django's middleware, because clients poll them many times a second.

Everything but a plain GET of a program (a browser, another method, a wrong value) is passed to Django, whose views give the
same answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.db import DatabaseError, connection
from django.http import QueryDict

from training.api import parse, representations
from training.errors import TrainingRefused
from training.jobs.queue import current_job

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

READERS = 2
HEADERS = ((b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff"), (b"vary", b"Accept"))


def status_text(query: Mapping[str, Any]) -> str:
    """The answer of ``/status``."""
    return representations.encoded(representations.job_status(current_job()))


def events_text(query: Mapping[str, Any]) -> str:
    """The answer of ``/events``. Raises BadValue and JobNotFound."""
    since = parse.whole_number(query.get("since_index"), "since_index", default=0)
    limit = parse.whole_number(query.get("limit"), "limit", default=parse.DEFAULT_PAGE, largest=parse.LARGEST_PAGE, smallest=1)
    as_links = parse.wants_links(query)
    job = parse.job_of(query.get("job_id"))
    page = representations.encoded_events(job, since, limit, as_links=as_links) if job else []
    next_index = page[-1][0] + 1 if page else since
    job_id = json.dumps(str(job.pk) if job else None)
    return f'{{"events":[{",".join(text for _, _, text in page)}],"job_id":{job_id},"next_index":{next_index}}}'


READS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "/api/training/status": status_text,
    "/api/training/events": events_text,
}


class QuickReads:
    """Answers plain reads in threads that keep their database connections, and passes all other requests to ``rest``."""

    def __init__(self, rest: Application) -> None:
        self._rest = rest
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="quick-reader")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = READS.get(scope["path"].removesuffix("/")) if _is_plain_read(scope) else None
        if read is not None:
            query_string = scope.get("query_string", b"")
            text = await asyncio.get_running_loop().run_in_executor(self._readers, _read_in_thread, read, query_string)
            if text is not None:
                await _answer(send, text)
                return
        await self._rest(scope, receive, send)


def _is_plain_read(scope: Scope) -> bool:
    """Whether the request is a GET of a program. Browsers list text/html in Accept."""
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    accepted = next((value for name, value in scope["headers"] if name.lower() == b"accept"), b"*/*")
    return b"text/html" not in accepted and (b"json" in accepted or b"*/*" in accepted)


def _read_in_thread(read: Callable[[Mapping[str, Any]], str], query_string: bytes) -> str | None:
    """The answer; None if Django has to report an error. A broken connection is closed, so that the next read opens a new one."""
    try:
        query = QueryDict(query_string)
        return None if "format" in query else read(query)
    except (TrainingRefused, SuspiciousOperation):  # too many fields are suspicious
        return None
    except DatabaseError:
        connection.close()
        return None


async def _answer(send: Send, text: str) -> None:
    body = text.encode()
    headers = [*HEADERS, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

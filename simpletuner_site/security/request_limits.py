"""ASGI middleware that limits requests: ``BodyLimit`` their size, ``Turns`` how many Django handles at once.

``edge`` refuses a long body sooner, while it arrives; ``BodyLimit`` protects the application behind another server. Each request in
Django holds a thread, and the thread a database connection with three descriptors: without ``Turns``, a thousand slow requests
would use up the limit of open files.
"""

from __future__ import annotations

import asyncio
import re

from simpletuner_site.edge.refusals import too_long
from simpletuner_site.edge.uploads import BodySizes
from simpletuner_site.security.requests import Application, Message, Receive, Scope, Send, announced_bytes, send_json


class BodyTooLong(Exception):
    """The body is longer than the limit; the rest is not read."""


class BodyLimit:
    """Counts the bytes of a request's body, with or without a Content-Length."""

    def __init__(self, inner: Application, sizes: BodySizes) -> None:
        self.inner = inner
        self.sizes = sizes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        limit = self.sizes.of(scope)
        if announced_bytes(scope) > limit:
            await _refuse(send, limit)
            return
        has_started = False
        taken = 0

        async def counting_receive() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise BodyTooLong
            return message

        async def noting_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.inner(scope, counting_receive, noting_send)
        except BodyTooLong:
            if not has_started:
                await _refuse(send, limit)


async def _refuse(send: Send, limit_bytes: int) -> None:
    refusal = too_long(limit_bytes)
    await send_json(send, refusal.status, {"detail": refusal.detail, "problems": []})


MOST_AT_ONCE = 32


class Turns:
    """Passes requests on in the order in which they came."""

    def __init__(self, inner: Application, most_at_once: int = MOST_AT_ONCE) -> None:
        self._inner = inner
        self._turns = asyncio.Semaphore(most_at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._turns:
            await self._inner(scope, receive, send)


DOWNLOAD = re.compile(r"/api/training/jobs/[^/]+/files/.+")
MOST_DOWNLOADS = 8


class Downloads:
    """Refuses downloads beyond a few at once: each keeps its turn until its client has read the file, and other calls need turns too."""

    def __init__(self, inner: Application, most_at_once: int = MOST_DOWNLOADS) -> None:
        self._inner = inner
        self._free = most_at_once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not DOWNLOAD.match(str(scope["path"])):
            await self._inner(scope, receive, send)
            return
        if not self._free:
            await send_json(send, 503, {"detail": "Too many files are being downloaded. Try again when one is done.", "problems": []})
            return
        self._free -= 1
        try:
            await self._inner(scope, receive, send)
        finally:
            self._free += 1

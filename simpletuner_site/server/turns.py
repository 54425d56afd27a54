"""At most so many requests in Django at once; the others wait for their turn.

Each one there has a thread, and the thread a connection to the database, which holds three descriptors: a thousand slow requests would
use up the limit of open files, and those who come then would fail.
"""

from __future__ import annotations

import asyncio

from simpletuner_site.security.guard import Application, Receive, Scope, Send

MOST_AT_ONCE = 32


class Turns:
    """Passes requests on in the order in which they came."""

    def __init__(self, inner: Application, most_at_once: int = MOST_AT_ONCE) -> None:
        self._inner = inner
        self._turns = asyncio.Semaphore(most_at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._turns:
            await self._inner(scope, receive, send)

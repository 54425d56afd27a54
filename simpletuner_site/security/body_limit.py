"""The longest body that is read: more is answered with 413 before any of it reaches a view.

``edge`` refuses it sooner, while it comes; this holds where another server runs the application.
"""

from __future__ import annotations

from simpletuner_site.edge.refusals import too_long
from simpletuner_site.security.guard import Application, Message, Receive, Scope, Send, announced_bytes, send_json


class BodyTooLong(Exception):
    """The body went on after the limit; nothing further is read."""


class BodyLimit:
    """Counts what a request's body holds, whether or not it says its length."""

    def __init__(self, inner: Application, limit_bytes: int) -> None:
        self.inner = inner
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        if announced_bytes(scope) > self.limit_bytes:
            await self._refuse(send)
            return
        has_started = False
        taken = 0

        async def counting_receive() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.limit_bytes:
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
                await self._refuse(send)

    async def _refuse(self, send: Send) -> None:
        refusal = too_long(self.limit_bytes)
        await send_json(send, refusal.status, {"detail": refusal.detail, "problems": []})

"""Keeps a client that does not read from filling the server's memory.

Daphne accepts everything and collects it in the connection's buffer, so this module measures that buffer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

LARGEST_BACKLOG_BYTES = 1024 * 1024
PATIENCE_SECONDS = 10.0
PAUSE_SECONDS = 0.02
FAREWELL_SECONDS = 30.0
"""Time for a dropped client to read its data and the reason for the close before the connection is cut."""


class ClientTooSlow(Exception):
    """A client left too much data unread for too long. It can reconnect with its last index."""


def _protocol(send: Callable[..., Any]) -> Any:
    """Daphne's end of the connection; None under another server."""
    return send.args[0] if isinstance(send, partial) and send.args else None


def backlog_bytes(send: Callable[..., Any]) -> int:
    """Bytes given to Daphne's connection and not yet taken by the kernel; 0 under a server that is not Daphne."""
    protocol = _protocol(send)
    channel = getattr(protocol, "channel", None) or protocol
    return unsent_bytes(getattr(channel, "transport", None))


def unsent_bytes(transport: Any) -> int:
    """Bytes given to a Twisted transport and not yet taken by the kernel."""
    waiting = len(getattr(transport, "dataBuffer", b"")) - int(getattr(transport, "offset", 0))
    return waiting + int(getattr(transport, "_tempDataLen", 0))


async def wait_for_reader(send: Callable[..., Any]) -> None:
    """Return when the backlog of the client is small enough. Raises ClientTooSlow."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while backlog_bytes(send) > LARGEST_BACKLOG_BYTES:
        if time.monotonic() > deadline:
            raise ClientTooSlow
        await asyncio.sleep(PAUSE_SECONDS)


def grant_farewell(send: Callable[..., Any]) -> None:
    """Give a slow client time to read the close message: Autobahn cuts a connection after one second otherwise."""
    protocol = _protocol(send)
    if hasattr(protocol, "closeHandshakeTimeout"):
        protocol.closeHandshakeTimeout = FAREWELL_SECONDS


class PatientSend:
    """Sends each part of a long answer when the client has read most of what was sent before. A client that stops reading is cut off."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Callable[..., Any]) -> None:
        async def patient(message: Any) -> None:
            if message.get("more_body"):
                try:
                    await wait_for_reader(send)
                except ClientTooSlow:
                    _abort(send)  # the application hears of it as of every client that leaves, and closes its files
            await send(message)

        await self._inner(scope, receive, patient)


def _abort(send: Callable[..., Any]) -> None:
    """Cut a connection, so that its client does not take a part of an answer for all of it."""
    transport = getattr(getattr(_protocol(send), "channel", None), "transport", None)
    if transport is not None:
        transport.abortConnection()

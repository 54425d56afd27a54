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

"""Keep a client that does not read from filling the server's memory.

Daphne takes whatever it is given and lets it pile up in the connection's buffer, so we look into that buffer.
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
"""For a dropped client to read what lies ready and, behind it, why it was dropped; then the connection is cut."""


class ClientTooSlow(Exception):
    """A client left more than the allowed backlog lying for too long; it can come back with its index."""


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
    """Return when the client has taken enough to be sent more. Raises ClientTooSlow."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while backlog_bytes(send) > LARGEST_BACKLOG_BYTES:
        if time.monotonic() > deadline:
            raise ClientTooSlow
        await asyncio.sleep(PAUSE_SECONDS)


def grant_farewell(send: Callable[..., Any]) -> None:
    """Autobahn cuts a connection one second after it said goodbye, which a slow client has no chance to hear."""
    protocol = _protocol(send)
    if hasattr(protocol, "closeHandshakeTimeout"):
        protocol.closeHandshakeTimeout = FAREWELL_SECONDS

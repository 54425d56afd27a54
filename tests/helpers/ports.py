"""Ports for servers that tests start."""

from __future__ import annotations

import random
import socket

BELOW_THE_EPHEMERAL = range(10_000, 30_000)
"""The system gives connections, and sockets bound to port 0, a port above these, so that none is taken between the choice and its use."""


def free_port() -> int:
    """A port of loopback that nobody listens on. It is one of so many that processes which choose at once choose different ones."""
    while True:
        port = random.SystemRandom().choice(BELOW_THE_EPHEMERAL)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port

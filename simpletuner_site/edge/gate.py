"""The limits that all connections share, and the rules by which a request is refused from its headers."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from simpletuner_site.edge.refusals import Refusal, too_long
from simpletuner_site.edge.uploads import BodySizes, DiskSpace
from simpletuner_site.security.guard import Guard
from simpletuner_site.security.requests import Scope, announced_bytes

SWEEP_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """The limits of size, number and time."""

    connections: int
    body_bytes: BodySizes
    small_body_bytes: int = 64 * 1024
    """A body up to this size is always accepted; a longer one needs a slot."""
    long_bodies: int = 8
    """Number of slots for longer bodies. Each is held in memory, one of an upload in a file."""
    idle_seconds: float = 60.0
    """Limit between two requests of a connection, and before the first."""
    head_seconds: float = 10.0
    """Limit from the first byte of a request to the end of its headers."""
    body_seconds: float = 20.0
    """Limit for a body; each ``body_bytes_a_second`` that arrive add one second."""
    body_bytes_a_second: int = 64 * 1024
    linger_seconds: float = 2.0
    """How long data of a refused client is still read, so that it can read the answer."""
    stall_seconds: float = 15.0
    """A closing connection is aborted if its client reads nothing of the answer for this long."""


class Connection(Protocol):
    """The interface of a connection for the gate."""

    since: float

    @property
    def is_open(self) -> bool: ...

    @property
    def rank(self) -> int | None:
        """The lowest rank is closed first; None while the server works for this connection or streams to it."""

    def check_time(self, now: float) -> None:
        """Enforce the time limits."""

    def evict(self) -> None:
        """Close now, to make room."""


class Gate:
    """Counts connections and long bodies. Everything runs on the reactor's thread."""

    def __init__(self, limits: Limits, refusal: Callable[[Scope], Refusal | None], disk: DiskSpace) -> None:
        self.limits = limits
        self.refusal = refusal
        self.disk = disk
        self._connections: set[Connection] = set()
        self._long_bodies: set[Any] = set()

    def enter(self, connection: Connection) -> bool:
        """Count a new connection; False if there is no room.

        A connection that waits for its client is closed to make room, so that idle connections lock nobody out.
        """
        if len(self._connections) >= self.limits.connections and not self._make_room():
            return False
        self._connections.add(connection)
        return True

    def leave(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.return_body_slot(connection)

    def take_body_slot(self, connection: Connection) -> bool:
        """Take a slot for a long body. Returns whether there was one."""
        if connection not in self._long_bodies and len(self._long_bodies) >= self.limits.long_bodies:
            return False
        self._long_bodies.add(connection)
        return True

    def return_body_slot(self, connection: Connection) -> None:
        self._long_bodies.discard(connection)
        self.disk.give_back(connection)

    def sweep(self) -> None:
        """Check every connection; called once a second."""
        now = time.monotonic()
        for connection in list(self._connections):
            if connection.is_open:
                connection.check_time(now)
            else:  # it became a WebSocket, and Twisted reports its end to the WebSocket only
                self.leave(connection)

    def _make_room(self) -> bool:
        for connection in [one for one in self._connections if not one.is_open]:
            self.leave(connection)
        if len(self._connections) < self.limits.connections:
            return True
        ranked = [(rank, one.since, one) for one in self._connections if (rank := one.rank) is not None]
        if not ranked:
            return False
        _, _, victim = min(ranked, key=lambda entry: entry[:2])
        self.leave(victim)
        victim.evict()
        return True


logger = logging.getLogger(__name__)

WANTED_DESCRIPTORS = 4096
KEPT_FREE = 192
"""For databases (three per thread), logs, images, the worker's pipe, and connections that are being refused."""
MOST_CONNECTIONS = 2000
FEWEST_CONNECTIONS = 16


def raise_descriptor_limit() -> int:
    """Raise a low soft limit towards the hard limit; returns the resulting limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(WANTED_DESCRIPTORS, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError) as error:
        logger.info("the limit of open files stays at %s: %s", soft, error)
        return soft
    return wanted


def connection_limit(descriptors: int) -> int:
    """How many connections may be open at once under a limit of open files."""
    return max(FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, descriptors - KEPT_FREE))


@dataclass(frozen=True)
class RequestRules:
    """The rules for access and body size."""

    guard: Guard
    body_bytes: BodySizes

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why the request is refused before its body is read; None if it may pass."""
        refusal = self.guard.refusal(scope)
        if refusal is not None:
            return refusal
        if announced_bytes(scope) > self.body_bytes.of(scope):
            return too_long(self.body_bytes.of(scope))
        return None

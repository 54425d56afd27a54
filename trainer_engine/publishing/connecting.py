"""Which machines the process that uploads connects to: none that hands out the keys of machines, whatever library asks.

The libraries of the stores look their names up themselves, each time they connect, by ``socket.getaddrinfo``. What they are given
is checked there, so that a name that means another address by then does not get around it.
"""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from trainer_engine.contract.addresses import PORTS, addresses_in, never_asked
from trainer_engine.publishing.base import StoreError

looked_up = socket.getaddrinfo


class ClosedAddress(OSError):
    """A name means a machine that is never asked."""


def open_addresses(host: Any, *rest: Any, **named: Any) -> list[Any]:
    """``socket.getaddrinfo``. Raises ClosedAddress where any address of the host is one that nothing is ever asked of."""
    found = looked_up(host, *rest, **named)
    for address in addresses_in(found):
        if never_asked(address):
            raise ClosedAddress(f"{host} is {address}, where machines get their keys from: it is never asked")
    return found


def guard_connections() -> None:
    """For this whole process, from here to its end."""
    socket.getaddrinfo = open_addresses


def address_of(host: str, port: int) -> str:
    """One address of a host. Raises StoreError where any of them is never asked, OSError or UnicodeError where there is none."""
    try:
        return str(addresses_in(open_addresses(host, port, type=socket.SOCK_STREAM))[0])
    except ClosedAddress as error:
        raise StoreError(f"{error}.", hopeless=True) from error


def refuse_closed(url: str) -> None:
    """Raises StoreError for an address that is never asked, before anything is tried there."""
    parts = urlsplit(url)
    try:
        address_of(parts.hostname or "", parts.port or PORTS[parts.scheme])
    except (OSError, UnicodeError):
        return  # a name that nobody knows now: the library will say so, and is tried again

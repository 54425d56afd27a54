"""Restricts which hosts a transfer process connects to: the same addresses that ``validate`` allows, at the time of each connection.

The providers' libraries resolve host names themselves. So the results of ``socket.getaddrinfo`` are checked, and the address of every
connection, however a library obtained it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from trainer_engine.config.addresses import PORTS, addresses_in, closed_because
from trainer_engine.config.publishing import AZURE, PublishTarget
from trainer_engine.config.resuming.remote_checkpoint import HTTP
from trainer_engine.publishing.base import ProviderError

looked_up = socket.getaddrinfo
connected = socket.socket.connect
connected_ex = socket.socket.connect_ex
NETWORKS = (socket.AF_INET, socket.AF_INET6)


class ClosedAddress(OSError):
    """A host name resolves to an address that must not be connected to."""


@dataclass(frozen=True)
class ConnectionRule:
    """Which addresses may be connected to. Metadata services and link-local addresses are always closed."""

    private: bool = False
    """Whether private networks are open, which only the server's operator decides."""
    exempt: frozenset[str] = frozenset()
    """Hosts that the operator chose, such as proxies. They may be in a private network."""

    def with_proxies(self) -> ConnectionRule:
        """The same rule with the proxies of the environment variables exempt."""
        hosts = (urlsplit(address if "://" in address else f"//{address}").hostname for address in getproxies().values())
        return ConnectionRule(self.private, self.exempt | {host for host in hosts if host})

    @classmethod
    def of(cls, target: PublishTarget, *, private: bool) -> ConnectionRule:
        """The rule for a target. It restricts addresses that a configuration contains; others are the operator's or the provider's own."""
        is_named = bool(target.endpoint_url) or target.provider in (AZURE, HTTP)
        return cls(private or not is_named).with_proxies()

    def refuse(self, host: str, found: Collection[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
        """Raises ClosedAddress if any address of a host is closed."""
        for address in found:
            reason = closed_because(address, private=self.private or host in self.exempt)
            if reason:
                raise ClosedAddress(f"{host} is {address}, {reason}")


class Guard:
    """Checks every connection of this process against a rule, from ``stand`` to the end of the process."""

    def __init__(self, rule: ConnectionRule) -> None:
        self.rule = rule
        self._exempt_addresses: set[str] = set()

    def stand(self) -> None:
        """Replace ``socket.getaddrinfo`` and the connect methods of sockets by checked ones."""
        socket.getaddrinfo = self.open_addresses
        guard = self

        def connect(self: socket.socket, place: Any) -> None:
            guard.refuse_peer(self, place)
            connected(self, place)

        def connect_ex(self: socket.socket, place: Any) -> int:
            guard.refuse_peer(self, place)
            return connected_ex(self, place)

        socket.socket.connect = connect  # type: ignore[method-assign, assignment]  # only the arguments that sockets are given
        socket.socket.connect_ex = connect_ex  # type: ignore[method-assign, assignment]  # only the arguments that sockets are given

    def open_addresses(self, host: Any, *rest: Any, **named: Any) -> list[Any]:
        """``socket.getaddrinfo`` with a check. Raises ClosedAddress if any address of the host is closed."""
        found = looked_up(host, *rest, **named)
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
        self.rule.refuse(name, addresses_in(found))
        if name in self.rule.exempt:
            self._exempt_addresses |= {str(address) for address in addresses_in(found)}
        return found

    def refuse_peer(self, connection: socket.socket, place: Any) -> None:
        """Raises ClosedAddress if a connection to ``place`` is not allowed."""
        if connection.family not in NETWORKS or not isinstance(place, tuple):
            return
        host = str(place[0]).partition("%")[0]
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            self.open_addresses(host, None)  # a name, which the operating system would resolve itself
            return
        ConnectionRule(self.rule.private or host in self._exempt_addresses).refuse(host, [address])


CLOSED = ConnectionRule()


def address_of(host: str, port: int, rule: ConnectionRule) -> str:
    """One address of a host. Raises ProviderError if any of its addresses is closed, OSError or UnicodeError if it has none."""
    try:
        return str(addresses_in(Guard(rule).open_addresses(host, port, type=socket.SOCK_STREAM))[0])
    except ClosedAddress as error:
        raise ProviderError(f"{error}.", permanent=True) from error


def refuse_closed(url: str, rule: ConnectionRule) -> None:
    """Raises ProviderError if the address of ``url`` is closed."""
    parts = urlsplit(url)
    try:
        address_of(parts.hostname or "", parts.port or PORTS[parts.scheme], rule)
    except (OSError, UnicodeError):
        return  # a name that does not resolve now: the library reports it, and the upload is tried again

"""Which network addresses may be posted to and fetched from: one rule for the server, its checks and the processes of a run."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last four bytes are the IPv4 address that a gateway connects to."""
SHARED = ipaddress.ip_network("100.64.0.0/10")
"""Addresses of carriers and overlay networks (RFC 6598)."""
PRIVATE_VARIABLE = "SIMPLETUNER_PRIVATE_WEBHOOKS"
"""Environment variable that allows private networks, for the server and for the engines that it starts."""
DOWNLOAD_VARIABLE = "SIMPLETUNER_DOWNLOAD_GB"
"""Environment variable with the most GB that a run downloads for one dataset of addresses; 0: no limit."""
DOWNLOAD_GB = 500.0
GB = 10**9
METADATA = frozenset(ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"))
"""Addresses of metadata services, at which clouds give out the machine's credentials."""

HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]{0,252}")
"""The name or the address of a machine."""
MOST_TRIED = 4
"""How many addresses of one name are tried."""
PORTS = {"http": 80, "https": 443}
"""Default port of each URL scheme."""


def addresses_in(looked_up: Iterable[tuple[Any, ...]]) -> list[Address]:
    """Returns the IP addresses in the result of ``socket.getaddrinfo``."""
    return [ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in looked_up]


def unwrapped(address: Address) -> Address:
    """Returns the IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in TRANSLATED else None
        return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or translated or address
    return address


def never_asked(address: Address) -> bool:
    """Whether the address is link-local, or the metadata service of a cloud."""
    inner = unwrapped(address)
    return inner in METADATA or inner.is_link_local


def closed_because(address: Address, *, private: bool, loopback: bool = True) -> str:
    """Returns why an address may not be used, as the end of a sentence, or an empty string if it may.

    ``private`` and ``loopback``: whether the server's operator allows these networks.
    """
    inner = unwrapped(address)
    if never_asked(inner):
        return "which gives out the machine's credentials; that is never allowed"
    if inner.is_multicast or inner.is_unspecified or (inner.is_reserved and not inner.is_loopback):
        return "which is not the address of a single machine"
    if inner.is_loopback:
        return "" if loopback else "this machine, which is not allowed while the server accepts other machines"
    shared = isinstance(inner, ipaddress.IPv4Address) and inner in SHARED
    if (inner.is_private or shared) and not private:
        return "in a private network; start the server with SIMPLETUNER_PRIVATE_WEBHOOKS=1 to allow these"
    return ""


class AddressRefused(OSError):
    """An address must not be connected to. The message says why; trying again is useless."""


@dataclass(frozen=True)
class Reach:
    """Which machines sources may connect to, and how much they may bring. Link-local and metadata addresses are always closed."""

    private: bool = False
    """Whether private networks are open, which only the server's operator decides."""
    largest_set_bytes: int = int(DOWNLOAD_GB * GB)
    """Most bytes that the files of one dataset of addresses may take on this machine; 0: no limit."""

    def addresses(self, host: str, port: int) -> list[str]:
        """Returns addresses of a host, in the order in which to try them.

        Raises AddressRefused if any of them is closed, OSError if the name cannot be resolved.
        """
        try:
            found = addresses_in(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except UnicodeError as error:
            raise AddressRefused(f"{host[:80]!r} is no host name") from error
        for address in found:
            reason = closed_because(address, private=self.private)
            if reason:
                raise AddressRefused(f"{host} is {address}, {reason}")
        return list(dict.fromkeys(map(str, found)))[:MOST_TRIED]

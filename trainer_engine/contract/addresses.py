"""Network addresses that nothing is ever posted to or fetched from, whoever asks for it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses whose last four bytes are the IPv4 address that a gateway connects to."""
METADATA = frozenset(ipaddress.ip_address(text) for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"))
"""Where clouds hand out the keys of the machine."""

PORTS = {"http": 80, "https": 443}
"""Of an address that names none."""


def addresses_in(looked_up: Iterable[tuple[Any, ...]]) -> list[Address]:
    """The addresses of what ``socket.getaddrinfo`` answers."""
    return [ipaddress.ip_address(str(place[0]).partition("%")[0]) for *_, place in looked_up]


def unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in TRANSLATED else None
        return address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1] or translated or address
    return address


def never_asked(address: Address) -> bool:
    """Whether it is link-local, or the metadata service of a cloud."""
    inner = unwrapped(address)
    return inner in METADATA or inner.is_link_local

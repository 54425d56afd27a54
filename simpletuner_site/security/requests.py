"""What a request says before its body: headers, hosts, origins, and the peer."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

DEFAULT_PORTS = {"http": 80, "https": 443}


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Every value sent under a header name; names are compared in lower case, as ASGI gives them."""
    return [value.decode("latin-1") for key, value in scope.get("headers", ()) if key.lower() == name]


def announced_bytes(scope: Scope) -> int:
    """The Content-Length of the request; 0 without one."""
    lengths = [int(value) for value in header_values(scope, b"content-length") if value.strip().isdecimal() and len(value) < 20]
    return max(lengths, default=0)


def is_loopback(client: tuple[str, int] | list[Any] | None) -> bool:
    """Whether the peer is this machine."""
    if not client:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def peer_of(scope: Scope, proxies: Sequence[Network] = ()) -> str:
    """The address of the client.

    Every client can send ``X-Forwarded-For``, so it counts only if one of ``proxies`` sent the request, and then from its end: each proxy
    appends the address that it saw, and what stands before the first address that is no proxy's may be invented.
    """
    client = scope.get("client")
    address = str(client[0]) if client else "unknown"
    steps = [step.strip() for value in header_values(scope, b"x-forwarded-for") for step in value.split(",")]
    while steps and _is_in(address, proxies):
        step = steps.pop().strip('"').removeprefix("[").partition("]")[0]
        host = step.rpartition(":")[0] if step.count(":") == 1 else step
        try:
            address = str(ipaddress.ip_address(host))
        except ValueError:
            break
    return address


def _is_in(address: str, networks: Sequence[Network]) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any((getattr(found, "ipv4_mapped", None) or found) in network for network in networks)


def is_address(name: str) -> bool:
    """Whether the name of a host is an address: ``10.0.0.7``, or ``[fe80::1]`` in brackets."""
    is_bracketed = name.startswith("[") and name.endswith("]")
    try:
        return isinstance(ipaddress.ip_address(name[1:-1] if is_bracketed else name), ipaddress.IPv6Address) == is_bracketed
    except ValueError:
        return False


def split_host(host: str) -> tuple[str, int | None]:
    """``localhost:8001`` as name and port; the port is 0 if it is missing and None if it is invalid."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or host.strip().endswith("]"):
        return host.strip().lower(), 0
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        return name, None
    return name, int(port)


def same_host(origin: str, host: str) -> bool:
    """Whether an ``Origin`` is the host of the request, including the port; ``null`` never is."""
    try:
        parts = urlsplit(origin.strip())
        port = parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return False
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or parts.username is not None:
        return False
    name, host_port = split_host(host)
    return parts.hostname == name.strip("[]") and port == (host_port or DEFAULT_PORTS[parts.scheme])


async def send_json(send: Send, status: int, body: dict[str, Any]) -> None:
    """Send a JSON answer without Django."""
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})

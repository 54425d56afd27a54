"""Access control for every request: HTTP and WebSocket, every method, every path.

``edge`` applies the same guard as soon as a request's headers have arrived; this one protects the application behind other servers.

A page in a browser can reach a server on loopback, with a form that posts across sites or with a host name that resolves to
127.0.0.1. Programs such as curl do not send the headers by which browsers are recognised, so they pass.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
DEFAULT_PORTS = {"http": 80, "https": 443}
OWN_SITE = frozenset({"same-origin", "none"})
PAGES = frozenset({"/", "/docs", "/docs/", "/redoc", "/redoc/", "/admin", "/new", "/new/", "/environments"})
PAGE_TREES = ("/admin/", "/runs/", "/environments/")


class Guard:
    """Passes a request on to ``inner``, or answers 403 (a WebSocket handshake is closed, which the client sees as 403)."""

    def __init__(self, inner: Application, allowed_hosts: Iterable[str] = ()) -> None:
        self.inner = inner
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.inner(scope, receive, send)
            return
        reason = self.refusal(scope)
        if not reason:
            await self.inner(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 403, "reason": reason})
        else:
            await send_json(send, 403, {"detail": reason, "problems": []})

    def refusal(self, scope: Scope) -> str:
        """Why this request is refused; empty if it may pass."""
        if not is_loopback(scope.get("client")):
            return "Only this machine may use the server."
        hosts = header_values(scope, b"host")
        if len(hosts) != 1 or not self.is_allowed(hosts[0]):
            return f"The Host header must name this machine, such as localhost; it is {', '.join(hosts) or 'missing'}."
        for origin in header_values(scope, b"origin"):
            if not same_host(origin, hosts[0]):
                return f"Requests from pages of another origin are refused: {origin}."
        for site in header_values(scope, b"sec-fetch-site"):
            if site.strip().lower() not in OWN_SITE and not follows_link_to_page(scope):
                return f"Requests from pages of another site are refused (Sec-Fetch-Site: {site})."
        return ""

    def is_allowed(self, host: str) -> bool:
        """A loopback name with any port (a tunnel may change it), or a host that the operator listed, as listed."""
        name, port = split_host(host)
        if port is None:
            return False
        return name in LOOPBACK_NAMES or name in self.allowed_hosts or f"{name}:{port}" in self.allowed_hosts


def follows_link_to_page(scope: Scope) -> bool:
    """Whether a browser opens one of the pages in a tab, for example from a link in a chat.

    Opening a page changes nothing, and no page can be framed. API addresses are not pages.
    """
    path = str(scope.get("path", ""))
    return (
        scope["type"] == "http"
        and scope.get("method") == "GET"
        and (path in PAGES or path.startswith(PAGE_TREES))
        and header_values(scope, b"sec-fetch-mode") == ["navigate"]
        and header_values(scope, b"sec-fetch-dest") == ["document"]
    )


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

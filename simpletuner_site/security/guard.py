"""Access control for every request: HTTP and WebSocket, every method, every path.

``edge`` applies the same guard as soon as a request's headers have arrived; this one protects the application behind other servers.

A page in a browser can reach a server on loopback, with a form that posts across sites or with a host name that resolves to
127.0.0.1. Programs such as curl do not send the headers by which browsers are recognised, so they pass. A server with a token may be
reached from other machines; the rules about pages of other sites are the same there.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from simpletuner_site.edge.refusals import Refusal, asgi_response
from simpletuner_site.security.access import LOGIN, Access
from simpletuner_site.security.requests import (
    Application,
    Receive,
    Scope,
    Send,
    header_values,
    is_address,
    is_loopback,
    same_host,
    split_host,
)

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
OWN_SITE = frozenset({"same-origin", "none"})
PAGES = frozenset({"/", "/docs", "/docs/", "/redoc", "/redoc/", "/admin", "/new", "/new/", "/environments", LOGIN})
PAGE_TREES = ("/admin/", "/runs/", "/environments/")


class Guard:
    """Passes a request on to ``inner``, or refuses it (a WebSocket handshake is closed, which the client sees as 403)."""

    def __init__(self, inner: Application, allowed_hosts: Iterable[str] = (), access: Access | None = None) -> None:
        """Without ``access`` only this machine may use the server, and needs no token."""
        self.inner = inner
        self.allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.inner(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if refusal is None:
            await self.inner(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": refusal.status.value, "reason": refusal.detail[:120]})
        else:
            wants_page = b"text/html" in b",".join(value for name, value in scope["headers"] if name.lower() == b"accept")
            for message in asgi_response(refusal, as_page=wants_page):
                await send(message)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why this request is refused; None if it may pass. Its origin is judged before its token, so that no page can try tokens."""
        reason = self._wrong_origin(scope)
        if reason:
            return Refusal(HTTPStatus.FORBIDDEN, reason)
        return self.access.refusal(scope) if self.access else None

    def _wrong_origin(self, scope: Scope) -> str:
        """Why a request comes from the wrong place; empty if it does not."""
        if self.access is None and not is_loopback(scope.get("client")):
            return "Only this machine may use the server."
        hosts = header_values(scope, b"host")
        if len(hosts) != 1 or not self.is_allowed(hosts[0]):
            shown = ", ".join(hosts) or "missing"
            if self.access is not None:
                return f"The Host header must name a host of SIMPLETUNER_ALLOWED_HOSTS or --allowed-host; it is {shown}."
            return f"The Host header must name this machine, such as localhost; it is {shown}."
        for origin in header_values(scope, b"origin"):
            if not same_host(origin, hosts[0]):
                return f"Requests from pages of another origin are refused: {origin}."
        for site in header_values(scope, b"sec-fetch-site"):
            if site.strip().lower() not in OWN_SITE and not follows_link_to_page(scope):
                return f"Requests from pages of another site are refused (Sec-Fetch-Site: {site})."
        return ""

    def is_allowed(self, host: str) -> bool:
        """A loopback name with any port (a tunnel may change it), or a host that the operator listed, as listed.

        With a token an address is allowed too: only a name can be made to lead here by somebody else.
        """
        name, port = split_host(host)
        if port is None:
            return False
        if name in LOOPBACK_NAMES or name in self.allowed_hosts or f"{name}:{port}" in self.allowed_hosts:
            return True
        return self.access is not None and is_address(name)


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

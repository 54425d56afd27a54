"""Who may talk: every method, every path, HTTP and WebSocket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from simpletuner_site.security.guard import Guard
from simpletuner_site.security.requests import is_loopback, same_host, split_host

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PATHS = (
    "/",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/health",
    "/admin/",
    "/static/x.js",
    "/api/configs",
    "/api/training/start",
    "/api/training/events/stream",
)
HOST = (b"host", b"localhost:8001")
EVIL: dict[str, list[tuple[bytes, bytes]]] = {
    "no host": [],
    "rebound name": [(b"host", b"evil.example:8001")],
    "name that begins like ours": [(b"host", b"localhost.evil.example")],
    "name that ends like ours": [(b"host", b"evil-localhost:8001")],
    "another address": [(b"host", b"192.168.1.5:8001")],
    "any address": [(b"host", b"0.0.0.0:8001")],
    "port that is none": [(b"host", b"localhost:http")],
    "two hosts": [HOST, (b"host", b"evil.example")],
    "user in the host": [(b"host", b"localhost:8001@evil.example")],
    "origin of another site": [HOST, (b"origin", b"https://evil.example")],
    "origin of another port": [HOST, (b"origin", b"http://localhost:3000")],
    "origin of another loopback name": [HOST, (b"origin", b"http://127.0.0.1:8001")],
    "opaque origin": [HOST, (b"origin", b"null")],
    "origin that is no address": [HOST, (b"origin", b"http://[::1")],
    "origin of a file": [HOST, (b"origin", b"file://")],
    "two origins, one evil": [HOST, (b"origin", b"http://localhost:8001"), (b"origin", b"https://evil.example")],
    "cross-site": [HOST, (b"sec-fetch-site", b"cross-site")],
    "same-site": [HOST, (b"sec-fetch-site", b"same-site")],
    "cross-site with a good origin": [HOST, (b"origin", b"http://localhost:8001"), (b"sec-fetch-site", b"cross-site")],
}
GOOD: dict[str, list[tuple[bytes, bytes]]] = {
    "curl": [HOST],
    "curl by address": [(b"host", b"127.0.0.1:8001")],
    "curl by the other address": [(b"host", b"[::1]:8001")],
    "without a port": [(b"host", b"localhost")],
    "in capitals": [(b"host", b"LocalHost:8001")],
    "through a tunnel": [(b"host", b"localhost:9000")],
    "our own page": [HOST, (b"origin", b"http://localhost:8001"), (b"sec-fetch-site", b"same-origin")],
    "typed into the browser": [HOST, (b"sec-fetch-site", b"none")],
    "default port left out": [(b"host", b"localhost"), (b"origin", b"http://localhost:80")],
}


def ask(
    headers: list[tuple[bytes, bytes]],
    *,
    kind: str = "http",
    method: str = "GET",
    path: str = "/",
    client: tuple[str, int] | None = ("127.0.0.1", 50000),
    allowed: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """What the guard sends for one request in front of an application that always answers."""
    sent: list[dict[str, Any]] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "passed"})

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    scope = {"type": kind, "method": method, "path": path, "headers": headers, "client": client}
    asyncio.run(Guard(inner, allowed)(scope, receive, send))
    return sent


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("method", METHODS)
def test_requests_of_foreign_pages_are_refused_for_every_method_and_path(method: str, name: str) -> None:
    for path in PATHS:
        start, body = ask(EVIL[name], method=method, path=path)
        assert start["status"] == 403, path
        answer = json.loads(body["body"])
        assert answer["detail"]
        assert answer["problems"] == []


@pytest.mark.parametrize("name", EVIL)
def test_a_websocket_handshake_that_could_come_from_a_web_page_is_closed_before_it_opens(name: str) -> None:
    for path in PATHS:
        assert [(message["type"], message["code"]) for message in ask(EVIL[name], kind="websocket", path=path)] == [
            ("websocket.close", 403)
        ]


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("name", GOOD)
def test_programs_and_our_own_pages_pass(name: str, kind: str) -> None:
    for method in METHODS:
        for path in PATHS:
            assert ask(GOOD[name], kind=kind, method=method, path=path) == [{"type": "passed"}], (method, path)


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.5", "8.8.8.8", "fe80::1", "::ffff:10.0.0.7", "not-an-address"])
def test_other_machines_are_refused_whatever_they_call_the_host(address: str) -> None:
    assert ask([HOST], client=(address, 1))[0]["status"] == 403


def test_a_peer_that_is_not_known_is_refused() -> None:
    assert ask([HOST], client=None)[0]["status"] == 403


def test_headers_of_a_proxy_are_not_believed() -> None:
    forwarded = [(b"host", b"evil.example"), (b"x-forwarded-host", b"localhost:8001"), (b"forwarded", b"host=localhost")]
    assert ask(forwarded)[0]["status"] == 403


def test_hosts_that_the_operator_lists_pass() -> None:
    assert ask([(b"host", b"gpu-box:8001")], allowed=("gpu-box",)) == [{"type": "passed"}]
    assert ask([(b"host", b"gpu-box:8001")], allowed=("gpu-box:8001",)) == [{"type": "passed"}]
    assert ask([(b"host", b"gpu-box:8002")], allowed=("gpu-box:8001",))[0]["status"] == 403
    assert ask([(b"host", b"other-box:8001")], allowed=("gpu-box",))[0]["status"] == 403


def test_the_guard_passes_lifespan_messages() -> None:
    assert ask([], kind="lifespan") == [{"type": "passed"}]


def test_loopback_is_distinguished_from_other_addresses() -> None:
    assert all(is_loopback((address, 1)) for address in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"))
    assert not any(is_loopback((address, 1)) for address in ("0.0.0.0", "::", "10.0.0.1", ""))


def test_hosts_are_split_into_name_and_port() -> None:
    assert split_host("localhost:8001") == ("localhost", 8001)
    assert split_host("[::1]:8001") == ("[::1]", 8001)
    assert split_host("[::1]") == ("[::1]", 0)
    assert split_host("localhost") == ("localhost", 0)
    assert split_host("localhost:٨")[1] is None
    assert split_host("localhost:70000")[1] is None


def test_an_origin_stands_for_the_host_with_its_port() -> None:
    assert same_host("http://localhost:8001", "localhost:8001")
    assert same_host("HTTP://LOCALHOST:8001", "localhost:8001")
    assert same_host("http://[::1]:8001", "[::1]:8001")
    assert not same_host("http://localhost:8002", "localhost:8001")
    assert not same_host("http://user@localhost:8001", "localhost:8001")
    assert not same_host("ftp://localhost:8001", "localhost:8001")
    assert not same_host("http://localhost:99999", "localhost:8001")

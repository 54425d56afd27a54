"""What a page in somebody's browser can make that browser send."""

from __future__ import annotations

import itertools

from tests.security.target import Target, status_of

PATHS = (
    "/api/training/status",
    "/api/training/stop",
    "/api/configs",
    "/api/training/start",
    "/openapi.json",
    "/health",
    "/api/training/events/stream",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD")
FOREIGN = (
    "Host: evil.example",
    "Host: localhost.evil.example",
    "Host: {own}\r\nOrigin: https://evil.example",
    "Host: {own}\r\nOrigin: null",
    "Host: {own}\r\nOrigin: http://localhost:1",
    "Host: {own}\r\nSec-Fetch-Site: cross-site",
    "Host: {own}\r\nSec-Fetch-Site: same-site",
    "Host: {own}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors",
    "Host: {own}\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe",
    "Host: {own}\r\nHost: evil.example",
    "Host: evil.example\r\nX-Forwarded-Host: {own}",
    "Host: {own}\r\nOrigin: http://{own}\r\nOrigin: https://evil.example",
    "Host: {own}\r\nOrigin: https://evil.example\r\nContent-Type: text/plain",
)


def attack_forged_requests(target: Target) -> list[str]:
    """Every method, path and set of foreign headers is refused, and no answer allows another origin."""
    through = []
    own = f"localhost:{target.server.port}"
    for path, method, headers in itertools.product(PATHS, METHODS, FOREIGN):
        request = f"{method} {path} HTTP/1.1\r\n{headers.format(own=own)}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        answer = target.raw(request.encode())
        if status_of(answer) not in (400, 403) or b"access-control-allow-origin" in answer.lower():
            through.append(f"{method} {path} with {headers!r}: {answer[:60]!r}")
    return through


def attack_navigation_that_writes(target: Target) -> list[str]:
    """A link from elsewhere may open a page; a form that posts from elsewhere may not, and neither may reach the API."""
    own = f"localhost:{target.server.port}"
    headers = (f"Host: {own}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Connection: close")
    navigation = "\r\n".join((*headers, "Content-Length: 0"))
    through = []
    for method, path in (
        ("POST", "/admin/"),
        ("POST", "/"),
        ("POST", "/admin/webhooks"),
        ("POST", "/admin/webhooks/lab"),
        ("GET", "/api/training/status"),
        ("GET", "/api/configs"),
        ("POST", "/api/training/stop"),
    ):
        answer = target.raw(f"{method} {path} HTTP/1.1\r\n{navigation}\r\n\r\n".encode())
        if status_of(answer) != 403:
            through.append(f"a navigation may {method} {path}: {status_of(answer)}")
    return through

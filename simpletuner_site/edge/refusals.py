"""Answers to requests that are refused before Django: JSON for programs, a short page for browsers."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

STYLE = (
    "html { color-scheme: light dark; background: Canvas; color: CanvasText; } "
    "body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }"
)
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · SimpleTuner</title><style>{style}</style></head>
<body><h1>{title}</h1><p>{detail}</p>
<p>Go to the <a href="/">start page</a>, or type the address into the browser yourself.</p></body>
</html>
"""
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Refusal:
    """Why a request does not reach the application."""

    status: HTTPStatus
    detail: str
    """A sentence for people."""
    retry_after_seconds: int = 0
    """When the same request may succeed; 0 for never."""
    login_at: str = ""
    """Where a browser that wants a page may log in."""


def too_long(limit_bytes: int) -> Refusal:
    """The refusal of a body above the limit."""
    return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body is longer than {limit_bytes / 1024**2:g} MiB, the most that is read.")


def response_bytes(refusal: Refusal, *, as_page: bool = False, without_body: bool = False) -> bytes:
    """A complete HTTP/1.1 response that ends the connection."""
    status, headers, body = _response(refusal, as_page=as_page)
    head = "".join(f"{name}: {value}\r\n" for name, value in {**headers, "Server": "SimpleTuner"}.items())
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n{head}\r\n".encode("latin-1") + (b"" if without_body else body)


def asgi_response(refusal: Refusal, *, as_page: bool = False) -> list[dict[str, Any]]:
    """The same response as messages of ASGI."""
    status, headers, body = _response(refusal, as_page=as_page)
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    start = {"type": "http.response.start", "status": status.value, "headers": encoded}
    return [start, {"type": "http.response.body", "body": body}]


def _response(refusal: Refusal, *, as_page: bool) -> tuple[HTTPStatus, dict[str, str], bytes]:
    """Status, headers and body. A page that needs a log-in becomes a redirect to it."""
    status = refusal.status
    leads_on = as_page and bool(refusal.login_at)
    if as_page:
        body = PAGE.format(style=STYLE, title=f"{status.value} {status.phrase}", detail=html.escape(refusal.detail)).encode()
    else:
        body = json.dumps({"detail": refusal.detail, "problems": []}).encode()
    headers = {
        "Content-Type": "text/html; charset=utf-8" if as_page else "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        "X-Content-Type-Options": "nosniff",
        **({"Content-Security-Policy": PAGE_POLICY} if as_page else {}),
        **({"Retry-After": str(refusal.retry_after_seconds)} if refusal.retry_after_seconds else {}),
        **({"Location": refusal.login_at, "Cache-Control": "no-store"} if leads_on else {}),
        **({"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED and not leads_on else {}),
    }
    return HTTPStatus.SEE_OTHER if leads_on else status, headers, body

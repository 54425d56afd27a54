"""A web server on loopback that serves images, and fails in every way that web servers fail."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from tests.helpers.loopback import served_by


def picture(width: int = 20, height: int = 10, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, kind)
    return stream.getvalue()


@dataclass
class WebServer:
    """Serves files by their path, and misbehaves at the paths in ``bad``."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.files.clear()
        self.bad.clear()
        self.asked.clear()


class _Handler(BaseHTTPRequestHandler):
    web: WebServer

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.web.asked[path] += 1
        how = self.web.bad.get(path, "")
        if how == "once" and self.web.asked[path] > 1:
            how = ""
        content = self.web.files.get(path)
        if how.startswith("redirect "):
            self.answer(302, Location=how.removeprefix("redirect "))
        elif how in ("500", "once"):
            self.answer(503)
        elif how == "html":
            self.answer(200, b"<html>log in</html>", Content_Type="text/html; charset=utf-8")
        elif how == "hidden html":
            self.answer(200, b"<html>log in</html>", Content_Type="image/png")
        elif how == "too short":
            self.answer(200, (content or b"")[:50], Content_Length="5000")
        elif how == "endless":
            self.endless(b"x" * 65_536, 0)
        elif how == "slow":
            self.endless(b"x", 0.02)
        elif how == "silent":
            time.sleep(3)
        elif content is None:
            self.answer(404)
        elif how == "no length":
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(content)
        else:
            self.answer(200, content, Content_Type="image/png")

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def endless(self, block: bytes, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(block)
                time.sleep(pause)
        except OSError:
            return


@contextmanager
def serving() -> Iterator[WebServer]:
    """A server without files, at a free port."""
    web = WebServer()
    with served_by(_Handler, web=web) as web.url:
        yield web

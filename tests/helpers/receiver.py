"""A server that webhooks are posted to, which answers as a test wants."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Posted:
    """One request that came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """Change ``behaviour`` at any time: an HTTP status, ``hang``, ``redirect``, ``refuse`` (hangs up without a word), ``trickle`` (never
    done with its headers) or ``endless`` (success, and a body without end)."""

    url: str = ""
    behaviour: int | str = 200
    came: list[Posted] = field(default_factory=list)
    retry_after: str = ""

    @property
    def arrived(self) -> list[Posted]:
        """Those that were answered with success."""
        return [one for one in self.came if one.headers.get("answered") in ("200", "endless")]


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            behaviour = receiver.behaviour
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            receiver.came.append(Posted(self.path, {**dict(self.headers), "answered": str(behaviour)}, body))
            if behaviour in ("hang", "refuse"):
                time.sleep(3 if behaviour == "hang" else 0)
                self.close_connection = True
                return
            if behaviour == "trickle":
                self._pour(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x", every=0.1)
                return
            self.send_response(200 if behaviour == "endless" else 302 if behaviour == "redirect" else int(behaviour))
            if behaviour == "redirect":
                self.send_header("Location", "/elsewhere")
            if behaviour in (429, 503) and receiver.retry_after:
                self.send_header("Retry-After", receiver.retry_after)
            if behaviour != "endless":
                self.send_header("Content-Length", "0")
            self.end_headers()
            if behaviour == "endless":
                self._pour(b"", b"x" * 65536)

        def _pour(self, first: bytes, more: bytes, *, every: float = 0.0) -> None:
            self.close_connection = True
            try:
                self.wfile.write(first)
                while True:
                    self.wfile.write(more)
                    time.sleep(every)
            except OSError:
                return

        def log_message(self, *_: Any) -> None:
            return

    return Handler


@contextmanager
def receiving(port: int = 0, certificate: Path | None = None) -> Iterator[Receiver]:
    """With a certificate (and its key, in one PEM file) it speaks TLS."""
    receiver = Receiver()
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(receiver))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    receiver.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()

"""Requests that are large, slow or many."""

from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path

import httpx

from tests.helpers.live_server import PLAIN, start_server
from tests.security.target import STATUS, Target, drain, status_of

MEBIBYTE = 1024**2
SENT = 96 * MEBIBYTE
MOST_TAKEN = 24 * MEBIBYTE
"""What kernel buffers and one allowed body may hold."""
USUAL_FILES = 1024
CROWD = 1200


def _stored(pid: int) -> int:
    """Bytes in open files that have no name any more or lie in a temporary folder: spooled bodies."""
    total = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(link)
            if name.startswith("/tmp/") and "simpletuner.sqlite3" not in name and not name.endswith("server.log"):
                total += link.stat().st_size
        except OSError:
            continue
    return total


def _pour(target: Target, head: bytes, *, chunked: bool) -> tuple[int, int, int]:
    """Sends up to SENT bytes after ``head``: what the server stored at most, the bytes that went out, the code of its answer."""
    block = b"0" * MEBIBYTE
    framed = b"%x\r\n%s\r\n" % (len(block), block) if chunked else block
    stored = sent = 0
    with socket.create_connection(("127.0.0.1", target.server.port), timeout=5) as connection:
        try:
            connection.sendall(head)
            while sent < SENT:
                connection.sendall(framed)
                sent += MEBIBYTE
                stored = max(stored, _stored(target.server.pid))
            time.sleep(0.2)
            stored = max(stored, _stored(target.server.pid))
        except OSError:
            pass
        return stored, sent, status_of(drain(connection))


def attack_bodies_before_the_guard(target: Target) -> list[str]:
    """A foreign page sends a large body: none of it may be stored before the refusal."""
    through = []
    own = f"localhost:{target.server.port}"
    heads = {
        "another host": "Host: evil.example",
        "another origin": f"Host: {own}\r\nOrigin: https://evil.example",
        "another site": f"Host: {own}\r\nSec-Fetch-Site: cross-site",
        "too long": f"Host: {own}",
    }
    for what, headers in heads.items():
        for chunked in (False, True):
            framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 2000000000"
            head = f"POST /api/training/stop HTTP/1.1\r\n{headers}\r\n{framing}\r\n\r\n".encode()
            stored, sent, _ = _pour(target, head, chunked=chunked)
            if max(stored, 0) > MOST_TAKEN or sent >= SENT:
                through.append(f"{what}{' (chunked)' if chunked else ''}: {stored // MEBIBYTE} MiB stored, {sent // MEBIBYTE} MiB taken")
    return through


def attack_many_bodies_at_once(target: Target) -> list[str]:
    """Each body is below the limit, but a hundred of them are under way and none ends."""
    own = f"localhost:{target.server.port}".encode()
    head = b"POST /api/training/stop HTTP/1.1\r\nHost: " + own + b"\r\nContent-Length: 8000000\r\n\r\n"
    connections = []
    stored = 0
    try:
        for _ in range(100):
            connection = socket.create_connection(("127.0.0.1", target.server.port), timeout=2)
            connections.append(connection)
            try:
                connection.sendall(head + b"0" * (4 * MEBIBYTE))
            except OSError:
                continue
        time.sleep(0.5)
        stored = _stored(target.server.pid)
    finally:
        for connection in connections:
            connection.close()
    return [f"{stored // MEBIBYTE} MiB of unfinished bodies are stored"] if stored > 200 * MEBIBYTE else []


def attack_slow_headers_and_bodies(target: Target) -> list[str]:
    """Requests that never end are closed by the server, not kept for ever."""
    own = f"localhost:{target.server.port}".encode()
    unfinished = {
        "no byte": b"",
        "half a header": b"GET /api/training/status HTTP/1.1\r\nHost: " + own + b"\r\nX-Slow: ",
        "half a body": b"POST /api/training/stop HTTP/1.1\r\nHost: " + own + b"\r\nContent-Length: 5000\r\n\r\n{",
    }
    connections = {}
    for what, content in unfinished.items():
        connections[what] = socket.create_connection(("127.0.0.1", target.server.port), timeout=150)
        connections[what].sendall(content)
    through = []
    deadline = time.monotonic() + 150
    for what, connection in connections.items():
        connection.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            while connection.recv(4096):
                pass
        except TimeoutError:
            through.append(f"{what}: still open after 150 s")
        except OSError:
            pass
        connection.close()
    return through


def attack_a_crowd_of_connections(target: Target) -> list[str]:
    """More idle connections than the usual limit of open files; a person is still answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (USUAL_FILES, hard))
    try:
        server = start_server(target.place / "crowded")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CROWD), hard))
    crowd = []
    try:
        for _ in range(CROWD):
            try:
                crowd.append(socket.create_connection(("127.0.0.1", server.port), timeout=2))
            except OSError:
                break
        time.sleep(0.5)
        try:
            refused = sum(httpx.get(server.url + STATUS, timeout=5, **PLAIN).status_code != 200 for _ in range(20))
            return [f"{refused} of 20 people were refused"] if refused else []
        except httpx.TransportError as error:
            return [f"nobody is answered beside {len(crowd)} idle connections: {error!r}"]
    finally:
        for connection in crowd:
            connection.close()
        server.stop()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

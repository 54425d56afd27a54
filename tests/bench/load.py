"""A small HTTP load: a bounded number of keep-alive requests over a bounded number of connections to this machine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What one measurement found."""

    requests_per_second: float
    statuses: frozenset[int]


async def _connection(port: int, path: str, until: float, statuses: set[int]) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: application/json\r\n\r\n".encode()
    done = 0
    try:
        while time.perf_counter() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            statuses.add(int(head.split(None, 2)[1]))
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            await reader.readexactly(int(lengths[0].split(b":")[1]))
            done += 1
    finally:
        writer.close()
    return done


async def _measure(port: int, path: str, connections: int, seconds: float) -> Load:
    statuses: set[int] = set()
    began = time.perf_counter()
    counts = await asyncio.gather(*(_connection(port, path, began + seconds, statuses) for _ in range(connections)))
    return Load(sum(counts) / (time.perf_counter() - began), frozenset(statuses))


def measure(port: int, path: str, *, connections: int, seconds: float = 3.0) -> Load:
    """Requests a second that a server on this machine answers."""
    return asyncio.run(_measure(port, path, connections, seconds))

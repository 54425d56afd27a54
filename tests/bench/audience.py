"""Many subscribers of one job in a process of their own: ``python -m tests.bench.audience PORT JOB COUNT SINCE``.

Half are WebSockets, half server-sent events. Prints a line once all are connected, and at the end of stdin how late events came.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import websockets

ROOT = Path(__file__).resolve().parents[2]
STREAM = "/api/training/events/stream"
PROGRESS = re.compile(rb'"type":\s*"training.progress".*?"timestamp":\s*"([^"]+)"')
AT_ONCE = 20
"""Connections that are opened at the same time."""


@dataclass
class Heard:
    """What all subscribers heard."""

    progress: int = 0
    lags: list[float] = field(default_factory=list)
    """Seconds from the engine's word to the client, of each progress event at each client."""

    def take(self, message: bytes) -> None:
        if found := PROGRESS.search(message):
            self.progress += 1
            self.lags.append(time.time() - datetime.fromisoformat(found[1].decode()).timestamp())


async def by_websocket(address: str, heard: Heard, connected: asyncio.Semaphore, ready: asyncio.Event) -> None:
    async with connected:
        socket = await websockets.connect(f"ws://{address}", max_size=None, open_timeout=60)
    ready.set()
    async for message in socket:
        heard.take(message if isinstance(message, bytes) else message.encode())


async def by_server_sent_events(address: str, heard: Heard, connected: asyncio.Semaphore, ready: asyncio.Event) -> None:
    host, _, path = address.partition("/")
    async with connected:
        reader, writer = await asyncio.open_connection("localhost", int(host.rpartition(":")[2]), limit=1 << 26)
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
    ready.set()
    while line := await reader.readline():
        if line.startswith(b"data:"):
            heard.take(line)


async def listen(port: int, job_id: str, count: int, since: int) -> Heard:
    """Until stdin ends."""
    address = f"localhost:{port}{STREAM}?job_id={job_id}&since_index={since}"
    heard, connected = Heard(), asyncio.Semaphore(AT_ONCE)
    readies = [asyncio.Event() for _ in range(count)]
    kinds = (by_websocket, by_server_sent_events)
    tasks = [asyncio.create_task(kinds[place % 2](address, heard, connected, ready)) for place, ready in enumerate(readies)]
    gathered = asyncio.gather(*(ready.wait() for ready in readies))
    done, _ = await asyncio.wait([gathered, *tasks], return_when=asyncio.FIRST_COMPLETED)
    assert gathered in done, [task.exception() for task in tasks if task.done()]
    heard.progress, heard.lags = 0, []
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    return heard


@contextmanager
def audience(port: int, job_id: str, count: int, since: int) -> Iterator[Heard]:
    """The subscribers, connected; after the block, what they heard in it."""
    command = [sys.executable, "-m", "tests.bench.audience", str(port), job_id, str(count), str(since)]
    heard = Heard()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        yield heard
        told, _ = process.communicate()
    heard.progress, heard.lags = json.loads(told)


def main() -> None:
    port, job_id, count, since = sys.argv[1:]
    heard = asyncio.run(listen(int(port), job_id, int(count), int(since)))
    print(json.dumps([heard.progress, heard.lags]))


if __name__ == "__main__":
    main()

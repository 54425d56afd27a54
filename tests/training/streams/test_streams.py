"""WebSocket and server-sent events from a real server: the same story as polling, at once, whole, and never at a run's cost."""

from __future__ import annotations

import base64
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.helpers.live_server import LiveServer, start_server
from tests.helpers.log_writer import LogWriter

STREAM = "/api/training/events/stream"


WRITERS: dict[Path, LogWriter] = {}
"""By the home of their server."""


@pytest.fixture(scope="module", autouse=True)
def close_writers() -> Iterator[None]:
    yield
    while WRITERS:
        WRITERS.popitem()[1].close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with start_server(tmp_path_factory.mktemp("streams") / "home") as live:
        yield live


def write(server: LiveServer, *arguments: object) -> str:
    if server.home not in WRITERS:
        WRITERS[server.home] = LogWriter(server.home)
    return WRITERS[server.home].write(*arguments)


def new_job(server: LiveServer) -> str:
    """An ended job, so that no worker takes it up; its log is open to the writer all the same."""
    return write(server, "new", "completed")


class WebSocket:
    """As little of RFC 6455 as a client of this stream needs."""

    def __init__(self, server: LiveServer, query: str = "", headers: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {STREAM}{query} HTTP/1.1\r\nHost: localhost:{server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        )
        self.socket.sendall(request.encode())
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        while self.file.readline() not in (b"\r\n", b""):
            pass

    def read(self) -> Any:
        """The next message as JSON, or the close code."""
        while True:
            head = self.file.read(2)
            kind, length = head[0] & 0x0F, head[1] & 0x7F
            if length > 125:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
            content = self.file.read(length)
            if kind == 8:
                return int.from_bytes(content[:2], "big")
            if kind == 1:
                return json.loads(content)

    def close(self) -> None:
        self.socket.close()


def read_source(server: LiveServer, count: int, query: str = "", last_event_id: str = "") -> list[dict[str, str]]:
    """The first ``count`` events as their fields."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    events: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    with httpx.stream("GET", f"{server.url}{STREAM}{query}", headers=headers, timeout=20, verify=False) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line and name:
                fields[name] = value
            elif "data" in fields:
                events.append(fields)
                fields = {}
                if len(events) == count:
                    return events
    return events


def test_polling_websocket_and_sse_give_the_same_events(server: LiveServer) -> None:
    job = new_job(server)
    write(server, "events", job, 30, 0, 5)
    polled = server.get(f"/api/training/events?job_id={job}").json()["events"]
    client = WebSocket(server, f"?job_id={job}")
    frames = [client.read() for _ in polled]
    client.close()
    source = read_source(server, len(polled), f"?job_id={job}")
    assert [frame["event"] for frame in frames] == polled == [json.loads(event["data"]) for event in source]
    assert {frame["job_id"] for frame in frames} == {job}
    assert [event["id"] for event in source] == [str(index) for index in range(len(polled))]
    assert source[0]["event"] == "notification"


def test_a_stream_begins_where_it_was_asked_to(server: LiveServer) -> None:
    job = new_job(server)
    write(server, "events", job, 10, 0, 5)
    client = WebSocket(server, f"?job_id={job}&since_index=7")
    assert [client.read()["event"]["index"] for _ in range(3)] == [7, 8, 9]
    client.close()
    assert [event["id"] for event in read_source(server, 3, f"?job_id={job}", last_event_id="6")] == ["7", "8", "9"]


def test_a_socket_receives_events_within_milliseconds(server: LiveServer) -> None:
    job = new_job(server)
    client = WebSocket(server, f"?job_id={job}")
    writer = threading.Thread(target=write, args=(server, "events", job, 100, 0.02, 5))
    writer.start()
    seconds = []
    for index in range(100):
        event = client.read()["event"]
        seconds.append(time.time() - event["data"]["details"]["sent_at"])
        assert event["index"] == index
    writer.join()
    client.close()
    assert statistics.median(seconds) < 0.15, sorted(seconds)[-5:]


def test_a_stream_that_is_not_bound_continues_to_the_next_job_from_its_first_event(server: LiveServer) -> None:
    first = write(server, "new", "queued")
    write(server, "events", first, 3, 0, 5)
    client = WebSocket(server)
    opened = client.read()
    while opened["job_id"] != first:
        opened = client.read()
    server.post("/api/training/cancel", data={"job_id": first})  # the server's worker may have ended it already: it is no real job
    second = new_job(server)
    write(server, "events", second, 2, 0, 5)
    frames = []
    while not frames or frames[-1]["job_id"] != second:
        frames.append(client.read())
    frames.append(client.read())
    assert [frame["event"]["index"] for frame in frames if frame["job_id"] == second] == [0, 1]
    client.close()
    last = frames[-1]
    third = new_job(server)
    write(server, "events", third, 1, 0, 5)
    resumed = read_source(server, 1, last_event_id=f"{second}:{last['event']['index']}")
    assert resumed[0]["id"] == f"{third}:0"


@pytest.mark.parametrize(
    ("query", "status"), [("?job_id=nonsense", 404), ("?since_index=-1", 422), ("?since_index=x", 422), ("?media=x", 422)]
)
def test_a_bad_address_is_refused_with_the_reason(server: LiveServer, query: str, status: int) -> None:
    answer = server.get(STREAM + query)
    assert answer.status_code == status and answer.json()["detail"]
    client = WebSocket(server, query)
    assert client.read() == 4000 + status
    client.close()


def test_other_pages_may_not_listen(server: LiveServer) -> None:
    client = WebSocket(server, headers="Origin: http://evil.example\r\n")
    assert client.status == 403
    assert server.get(STREAM, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_other_methods_are_refused(server: LiveServer) -> None:
    assert server.post(STREAM).status_code == 405


@pytest.mark.slow
def test_a_client_that_does_not_read_is_dropped_and_others_do_not_notice(server: LiveServer) -> None:
    job = new_job(server)
    write(server, "events", job, 400, 0, 60_000)
    slow = WebSocket(server, f"?job_id={job}")
    healthy = WebSocket(server, f"?job_id={job}")
    indexes = [healthy.read()["event"]["index"] for _ in range(400)]
    assert indexes == list(range(400))
    healthy.close()
    time.sleep(13)
    seen, end = 0, None
    while end is None:
        try:
            message = slow.read()
        except (OSError, IndexError):  # cut off before it had read why
            end = 1013
            break
        end = message if isinstance(message, int) else None
        assert end or message["event"]["index"] == seen
        seen += end is None
    assert end == 1013 and seen < 400
    back = WebSocket(server, f"?job_id={job}&since_index={seen}")
    assert back.read()["event"]["index"] == seen
    back.close()


def test_a_server_with_open_streams_ends_cleanly(tmp_path: Path) -> None:
    live = start_server(tmp_path / "home")
    processes = live.processes()
    job = new_job(live)
    write(live, "events", job, 2, 0, 5)
    clients = [WebSocket(live, f"?job_id={job}") for _ in range(5)]
    assert all(client.read()["event"]["index"] == 0 for client in clients)
    sources = threading.Thread(target=read_source, args=(live, 99, f"?job_id={job}"))
    sources.start()
    time.sleep(0.5)
    began = time.monotonic()
    assert live.stop() == 0
    assert time.monotonic() - began < 10
    assert psutil.wait_procs(processes, timeout=5)[1] == []
    assert "Traceback" not in live.log.read_text()
    sources.join(10)
    assert not sources.is_alive()
    assert clients[0].read()["event"]["index"] == 1
    clients[0].socket.settimeout(5)
    assert clients[0].file.read(2) in (b"", b"\x88\x02")  # gone, with or without a word

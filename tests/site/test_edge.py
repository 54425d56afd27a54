"""The edge of a real server, by raw sockets: what is judged by its headers, bounded in size and time, and who makes room for whom."""

from __future__ import annotations

import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.helpers.live_server import PLAIN, LiveServer, start_server

MIB = 1024**2
STREAM = "/api/training/events/stream"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with start_server(tmp_path_factory.mktemp("home")) as live:
        yield live


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def head(*lines: str, host: str = "localhost") -> bytes:
    """A request line and headers; ``Host`` comes first where it is not empty."""
    request, *headers = lines
    return "\r\n".join([request, *([f"Host: {host}"] if host else []), *headers, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    parts = []
    while True:
        try:
            part = connection.recv(65536)
        except ConnectionResetError:
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def exchange(server: LiveServer, data: bytes) -> bytes:
    """Everything that is answered until the server closes."""
    with connect(server) as connection:
        connection.sendall(data)
        return read_all(connection)


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer.split(b" ", 2)[1])


def detail_of(answer: bytes) -> str:
    """Of an answer in the one shape of errors."""
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["problems"] == []
    detail: str = body["detail"]
    return detail


def pour(connection: socket.socket, total: int, block: bytes) -> int:
    """How many bytes a server takes before it closes, at most ``total``."""
    sent = 0
    while sent < total:
        try:
            sent += connection.send(block)
        except (ConnectionError, TimeoutError):
            break
    return sent


def files_of(server: LiveServer) -> int:
    """Bytes of the deleted files that the web process holds open: where a body would be spooled."""
    total = 0
    for link in Path(f"/proc/{server.pid}/fd").iterdir():
        try:
            if "(deleted)" in str(link.readlink()):
                total += link.stat().st_size
        except OSError:
            continue
    return total


FOREIGN: dict[str, tuple[int, dict[str, str]]] = {
    "host": (403, {"host": "evil.example"}),
    "no host": (403, {"host": ""}),
    "origin": (403, {"extra": "Origin: http://evil.example"}),
    "site": (403, {"extra": "Sec-Fetch-Site: cross-site"}),
    "length": (413, {}),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_huge_body_is_refused_by_its_headers_and_stored_nowhere(server: LiveServer, name: str, framing: str) -> None:
    status, changes = FOREIGN[name]
    length = "Content-Length: 629145600" if framing == "length" else "Transfer-Encoding: chunked"
    extra = changes.get("extra", "Accept: */*")
    memory = Path(f"/proc/{server.pid}/statm").read_text().split()
    with connect(server) as connection:
        connection.sendall(head("POST /api/training/stop HTTP/1.1", length, extra, host=changes.get("host", "localhost")))
        block = b"x" * MIB if framing == "length" else b"100000\r\n" + b"x" * MIB + b"\r\n"
        if name != "length" or framing == "length":  # the answer is there before the body is
            answer = connection.recv(65536)
            assert status_of(answer) == status
        sent = pour(connection, 600 * MIB, block)
    assert sent < 64 * MIB
    assert files_of(server) < MIB
    assert (int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) - int(memory[1])) * resource.getpagesize() < 64 * MIB
    assert server.get("/health").status_code == 200


def test_a_chunked_body_over_the_limit_is_refused_while_it_comes(server: LiveServer) -> None:
    with connect(server) as connection:
        connection.sendall(head("POST /api/configs/environments HTTP/1.1", "Transfer-Encoding: chunked"))
        for _ in range(9):
            connection.sendall(b"100000\r\n" + b"x" * MIB + b"\r\n")
        answer = read_all(connection)
    assert status_of(answer) == 413 and "8 MiB" in detail_of(answer)


def test_a_body_of_just_the_limit_reaches_the_application(server: LiveServer) -> None:
    body = b" " * (8 * MIB)
    with server.client() as client:
        assert client.request("GET", "/api/training/status", content=body).status_code == 200
        assert client.request("GET", "/api/training/status", content=iter([body])).status_code == 200
        assert client.request("GET", "/api/training/status", content=body + b" ").status_code == 413


def test_100_continue_comes_only_where_the_body_is_wanted(server: LiveServer) -> None:
    request = ("POST /api/training/stop HTTP/1.1", "Expect: 100-continue", "Content-Type: application/json")
    with connect(server) as connection:
        connection.sendall(head(*request, "Content-Length: 2"))
        assert b"100 Continue" in connection.recv(4096)
        connection.sendall(b"{}")
        assert status_of(connection.recv(4096)) == 200
    assert status_of(exchange(server, head(*request, "Content-Length: 99999999"))) == 413
    assert status_of(exchange(server, head(*request, "Content-Length: 2", host="evil.example"))) == 403


UNREADABLE: dict[str, tuple[int, bytes]] = {
    "no http": (400, b"hello\r\n\r\n"),
    "http 0.9": (400, b"GET /\r\n\r\n"),
    "http 2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "two lengths": (400, head("POST / HTTP/1.1", "Content-Length: 1", "Content-Length: 2")),
    "length and chunks": (400, head("POST / HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked")),
    "negative length": (400, head("POST / HTTP/1.1", "Content-Length: -1")),
    "length of 5,000 digits": (413, head("POST / HTTP/1.1", "Content-Length: " + "9" * 5000)),
    "unknown coding": (400, head("POST / HTTP/1.1", "Transfer-Encoding: gzip")),
    "bad chunk": (400, head("POST / HTTP/1.1", "Transfer-Encoding: chunked") + b"zz\r\n"),
    "header without a colon": (400, head("GET / HTTP/1.1", "hello")),
    "absolute form": (400, head("GET http://localhost/health HTTP/1.1")),
    "authority form": (400, head("CONNECT localhost:22 HTTP/1.1")),
    "asterisk form": (400, head("OPTIONS * HTTP/1.1")),
    "two hosts": (403, head("GET / HTTP/1.1", "Host: evil.example")),
    "http 1.0 without a host": (403, b"GET / HTTP/1.0\r\n\r\n"),
    "long line": (431, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"),
    "long header": (431, head("GET / HTTP/1.1", *(f"X-{number}: {'a' * 1000}" for number in range(20)))),
    "a query that is not ascii": (400, b"GET /?\xa0 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "upgrade with a body": (400, head(f"GET {STREAM} HTTP/1.1", "Upgrade: websocket", "Content-Length: 5") + b"abcde"),
    "upgrade with chunks": (400, head(f"GET {STREAM} HTTP/1.1", "Upgrade: websocket", "Transfer-Encoding: chunked") + b"1\r\na\r\n"),
    "folded host": (403, b"GET / HTTP/1.1\r\nHost: localhost\r\n evil.example\r\n\r\n"),
    "folded origin": (403, head("GET / HTTP/1.1", "Origin:", " http://evil.example")),
    "space before the colon": (400, b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n"),
    "a zero byte": (400, b"GET / HTTP/1.1\r\nHost: localhost\0\r\n\r\n"),
    "501 headers": (400, head("GET / HTTP/1.1", *["A: b"] * 501)),
    "long trailers": (400, head("POST / HTTP/1.1", "Transfer-Encoding: chunked") + b"0\r\n" + b"X: y\r\n" * 12_000 + b"\r\n"),
    "foreign upgrade with a body": (403, head(f"GET {STREAM} HTTP/1.1", "Upgrade: websocket", "Content-Length: 5", host="evil") + b"abcde"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_requests_are_answered_with_the_reason_as_json(server: LiveServer, name: str) -> None:
    status, data = UNREADABLE[name]
    answer = exchange(server, data)
    assert status_of(answer) == status and detail_of(answer)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_head_is_refused_without_a_body(server: LiveServer) -> None:
    answer = exchange(server, head("HEAD / HTTP/1.1", host="evil.example"))
    assert status_of(answer) == 403 and answer.endswith(b"\r\n\r\n")


def test_nothing_after_a_refusal_is_served(server: LiveServer) -> None:
    good = head("GET /api/training/status HTTP/1.1")
    bad = head("POST /api/training/stop HTTP/1.1", "Content-Length: 4", host="evil.example") + b"abcd"
    answer = exchange(server, good + bad + good)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"403"]
    assert b"403" in exchange(server, bad + good)[:20]


def test_pipelined_requests_are_answered_in_order(server: LiveServer) -> None:
    requests = [head(f"GET /api/training/events?limit={number} HTTP/1.1") for number in range(60)]
    answer = exchange(server, b"".join(requests) + head("GET /api/nowhere HTTP/1.1", "Connection: close"))
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"422", *[b"200"] * 59, b"404"]


def test_http_1_0_is_served_and_closed(server: LiveServer) -> None:
    answer = exchange(server, b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert b" 200 " in answer[:20] and b'"healthy"' in answer


@pytest.mark.parametrize("path", [b"/evil", b"http://evil.example", b"/\xff"])
def test_a_client_cannot_say_where_the_application_lies(server: LiveServer, path: bytes) -> None:
    answer = exchange(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nDaphne-Root-Path: " + path + b"\r\n\r\n")
    assert status_of(answer) == 200 and b"evil" not in answer and b'href="/admin/"' in answer


NAVIGATION = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Accept": "text/html"}


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("path", ["/", "/docs", "/redoc", "/admin/", "/admin/training/job/"])
def test_a_link_of_another_site_opens_a_page(server: LiveServer, path: str, site: str) -> None:
    answer = server.get(path, headers={**NAVIGATION, "Sec-Fetch-Site": site})
    assert answer.status_code == 200
    assert answer.headers["X-Frame-Options"] == "DENY" and "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "changes",
    [
        {"Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Dest": "object"},
        {"Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Mode": "cors"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example"},
    ],
)
def test_whatever_else_comes_from_another_site_is_refused(server: LiveServer, changes: dict[str, str]) -> None:
    assert server.get("/admin/", headers={**NAVIGATION, **changes}).status_code == 403


@pytest.mark.parametrize(
    "path", ["/api/configs", "/api/training/status", STREAM, "/health", "/openapi.json", "/api", "//admin/", "/static/admin/css/base.css"]
)
def test_a_link_of_another_site_does_not_open_the_api(server: LiveServer, path: str) -> None:
    assert server.get(path, headers=NAVIGATION).status_code == 403


def test_a_form_of_another_site_opens_no_page(server: LiveServer) -> None:
    for path in ("/", "/admin/training/job/"):
        assert server.post(path, headers=NAVIGATION, data={"action": "cancel"}).status_code == 403


def test_a_refusal_is_a_page_for_a_browser(server: LiveServer) -> None:
    answer = server.get("/api/configs", headers={**NAVIGATION, "Origin": "http://x/<script>"})
    assert answer.status_code == 403 and answer.headers["Content-Type"].startswith("text/html")
    assert "<h1>403 Forbidden</h1>" in answer.text and "<script" not in answer.text and 'href="/"' in answer.text


def quickly(server: LiveServer) -> bool:
    """Whether somebody else is answered."""
    return httpx.get(f"{server.url}/api/training/status", timeout=10, **PLAIN).status_code == 200


SLOW: dict[str, bytes] = {
    "nothing after the first byte": b"G",
    "half a header": b"POST /api/training/stop HTTP/1.1\r\nHost: localhost\r\nX-",
    "half a body": head("POST /api/training/stop HTTP/1.1", "Content-Length: 100") + b"{",
    "half a chunked body": head("POST /api/training/stop HTTP/1.1", "Transfer-Encoding: chunked") + b"5\r\nab",
    "half a long body": head("POST /api/training/stop HTTP/1.1", "Content-Length: 1000000") + b"{",
}


@pytest.mark.slow
def test_slow_clients_must_hurry_however_they_trickle(server: LiveServer) -> None:
    with ExitStack() as stack:
        slow = {name: stack.enter_context(connect(server)) for name in SLOW}
        stream = stack.enter_context(connect(server))
        stream.sendall(head(f"GET {STREAM} HTTP/1.1"))
        assert b"200" in stream.recv(4096)
        for name, connection in slow.items():
            connection.sendall(SLOW[name])
        answers: dict[str, bytes] = {}
        deadline = time.monotonic() + 60
        while len(answers) < len(slow) and time.monotonic() < deadline:
            for name, connection in slow.items():
                if name in answers:
                    continue
                try:
                    connection.settimeout(0.1)
                    answers[name] = connection.recv(4096)
                except TimeoutError:
                    connection.sendall(b"a" if "chunked" not in name else b"")
        assert {name: status_of(answer) for name, answer in answers.items()} == dict.fromkeys(SLOW, 408)
        assert all(detail_of(answer) for answer in answers.values())
        stream.settimeout(30)
        assert b"still here" in stream.recv(4096)  # a stream is no slow client
    assert quickly(server)


def test_only_so_many_long_bodies_are_under_way(server: LiveServer) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(8)]
        for connection in held:
            connection.sendall(head("POST /api/training/stop HTTP/1.1", "Content-Length: 1000000", "Content-Type: application/json"))
        wait_for(lambda: status_of(exchange(server, head("POST /api/training/stop HTTP/1.1", "Content-Length: 1000000"))) == 503)
        answer = exchange(server, head("POST /api/training/stop HTTP/1.1", "Content-Length: 1000000"))
        assert b"Retry-After: 1" in answer and detail_of(answer)
        chunked = head("POST /api/training/stop HTTP/1.1", "Transfer-Encoding: chunked") + b"20000\r\n" + b"x" * 0x20000 + b"\r\n"
        assert status_of(exchange(server, chunked)) == 503
        assert server.post("/api/training/stop", json={}).status_code == 200  # a short body needs no place
        held[0].sendall(b"{}" + b" " * 999_998)
        assert status_of(held[0].recv(4096)) == 200
        held[1].close()
        body = b"{}" + b" " * 999_998
        wait_for(lambda: server.post("/api/training/stop", content=body, headers={"Content-Type": "application/json"}).status_code == 200)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server whose limit of open files is low, the hard one too."""
    with start_server(tmp_path_factory.mktemp("narrow"), open_files=256) as live:
        yield live


@pytest.mark.parametrize("beginning", [b"", b"GET /api", head("POST /api/training/stop HTTP/1.1", "Content-Length: 10")])
def test_idle_connections_above_the_limit_lock_nobody_out(narrow: LiveServer, beginning: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(1_200):
            connection = stack.enter_context(connect(narrow))
            try:
                connection.sendall(beginning)
            except ConnectionError:
                pass
        for _ in range(20):
            assert quickly(narrow)
            assert narrow.get("/admin/").status_code == 200
        assert len(list(Path(f"/proc/{narrow.pid}/fd").iterdir())) < 256
    assert quickly(narrow)


def test_streams_leave_room_for_others(narrow: LiveServer) -> None:
    with ExitStack() as stack:
        streams = []
        for _ in range(100):
            connection = stack.enter_context(connect(narrow))
            connection.sendall(head(f"GET {STREAM} HTTP/1.1"))
            streams.append(connection.recv(4096))
        statuses = [status_of(answer) for answer in streams]
        assert statuses[:40] == [200] * 40 and set(statuses) == {200, 503}
        for _ in range(20):
            assert quickly(narrow)
    wait_for(lambda: stream_opens(narrow))


def stream_opens(server: LiveServer) -> bool:
    with connect(server) as connection:
        connection.sendall(head(f"GET {STREAM} HTTP/1.1"))
        return status_of(connection.recv(4096)) == 200


def test_a_server_ends_with_half_a_request_open(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    with connect(server) as connection, connect(server) as body, connect(server) as stream:
        connection.sendall(b"GET / HT")
        body.sendall(SLOW["half a long body"])
        stream.sendall(head(f"GET {STREAM} HTTP/1.1"))
        assert b"200" in stream.recv(4096)
        assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()

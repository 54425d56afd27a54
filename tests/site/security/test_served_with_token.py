"""A real server on every address of the machine, with a token: the way in, and what stays shut."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from simpletuner_site.server.greeting import shown_host
from tests.helpers.live_server import PLAIN, LiveServer
from tests.helpers.params import first_rows_fast
from tests.helpers.ports import free_port

TOKEN = "a-token-of-the-tests-0123456789"
BROWSER = {"Accept": "text/html,*/*;q=0.8"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Started with a token in a variable; the tests about links and flags start no other server than one that must not start."""
    home = tmp_path_factory.mktemp("home")
    arguments = ("--host", "0.0.0.0", "--allowed-host", "gpu-box")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with LiveServer(home, free_port(), environment={"SIMPLETUNER_TOKEN": TOKEN}, arguments=arguments, headers=headers).start() as live:
        yield live


def bare(server: LiveServer, path: str, method: str = "GET", **options: object) -> httpx.Response:
    return httpx.request(method, server.url + path, timeout=60, **PLAIN, **options)  # type: ignore[arg-type]


def test_nothing_is_answered_without_the_token(server: LiveServer) -> None:
    for path in ("/health", "/api/training/status", "/api/configs", "/docs", "/openapi.json", "/static/training/pages.js", "/nowhere"):
        answer = bare(server, path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert "token" in answer.json()["detail"]
    assert bare(server, "/api/training/stop", "POST").status_code == 401
    page = bare(server, "/runs/4", headers=BROWSER)
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=%2Fruns%2F4")


def test_a_body_is_not_read_before_the_token_is_known(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(f"POST /api/training/start HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Length: 8000000\r\n\r\n".encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_both_headers_and_the_cookie_open_it(server: LiveServer) -> None:
    assert server.get("/health").json()["status"] == "healthy"
    assert bare(server, "/api/configs", headers={"X-API-Key": TOKEN}).status_code == 200
    with httpx.Client(base_url=server.url, timeout=60, **PLAIN) as browser:
        origin = {"Origin": server.url}
        entered = browser.post("/login", data={"token": TOKEN, "next": "/docs"}, headers=origin)
        assert (entered.status_code, entered.headers["location"]) == (303, "/docs")
        assert browser.get("/", headers=BROWSER).status_code == 200
        assert 'href="/login">Log out' in browser.get("/admin/", headers=BROWSER).text
        assert browser.post("/api/training/stop").status_code == 403, "a cookie writes for pages of this server only"
        assert browser.post("/api/training/stop", headers=origin).status_code == 200
        assert browser.post("/api/training/stop", headers={"Origin": "http://evil.example"}).status_code == 403
        browser.post("/login", data={"leave": "1"}, headers=origin)
        assert browser.get("/api/configs").status_code == 401


def test_streams_need_the_token_too(server: LiveServer) -> None:
    address = server.url.replace("http", "ws", 1) + "/api/training/events/stream"
    with pytest.raises(InvalidStatus, match="401"):
        connect(address, proxy=None)
    with connect(address, additional_headers=server.headers, proxy=None) as stream:
        stream.ping()
    assert bare(server, "/api/training/events/stream").status_code == 401
    with server.client() as client, client.stream("GET", "/api/training/events/stream") as stream:
        assert stream.status_code == 200
        assert next(stream.iter_text()).startswith("retry:")


def test_other_machines_reach_it_by_address_and_by_listed_names(server: LiveServer) -> None:
    for host, status in (("10.1.2.3:1", 200), (f"gpu-box:{server.port}", 200), ("evil.example", 403)):
        assert server.get("/api/configs", headers={"Host": host}).status_code == status, host
    outward = shown_host("0.0.0.0")
    if outward != "localhost":
        answer = httpx.get(f"http://{outward}:{server.port}/api/configs", headers=server.headers, timeout=60, **PLAIN)
        assert answer.status_code == 200


def test_hooks_and_unlisted_roots_are_shut(server: LiveServer, tmp_path: Path) -> None:
    body = {"name": "shut", "model_family": "pixart_sigma", "model_type": "lora"}
    assert server.post("/api/configs/environments", json=body).status_code == 200
    server.post("/api/configs/shut/activate")
    form = {"--output_dir": str(tmp_path / "out"), "--post_upload_script": "python x.py"}
    answer = server.post("/api/training/validate", data=form, headers={"Accept": "application/json"}).json()
    problems = {problem["option"]: problem for problem in answer["problems"]}
    assert problems["output_dir"]["code"] == "outside_roots"
    assert "hooks are off" in problems["post_upload_script"]["message"]


def test_no_other_process_and_no_log_has_the_token(server: LiveServer) -> None:
    for process in server.processes()[1:]:
        assert TOKEN not in process.environ().values() and TOKEN not in " ".join(process.cmdline())
    assert TOKEN not in server.log.read_text()
    assert not any(TOKEN in file.read_text(errors="replace") for file in (server.home / "state").glob("*.json"))


def test_guesses_are_limited(server: LiveServer) -> None:
    """The last test of this server: it shuts out this machine for a minute."""
    statuses = [bare(server, "/api/configs", headers={"X-API-Key": f"guess {number}"}).status_code for number in range(12)]
    assert statuses[:9] == [401] * 9 and statuses[-1] == 429
    refused = server.get("/api/configs")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0


def starts(home: Path, *arguments: str, lines: int, **variables: str) -> list[str]:
    """The first lines that a server prints; it is ended then."""
    port = free_port()
    command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--port", str(port), "--home", str(home), *arguments]
    environment = {**os.environ, **variables}
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        printed = [process.stderr.readline() for _ in range(lines)]
        process.terminate()
        process.stderr.read()
    return printed


def test_a_generated_token_is_printed_once_as_a_link_and_kept_as_a_hash(tmp_path: Path) -> None:
    printed = "".join(starts(tmp_path, "--host", "0.0.0.0", "--generate-token", lines=5))
    [token] = re.findall(r"http://\S+/login#token=(\S+)", printed)
    assert len(token) >= 40 and printed.count(token) == 1 and "not encrypted" in printed
    stored = json.loads((tmp_path / "state/access.json").read_text())
    assert set(stored) == {"salt", "digest"} and token not in json.dumps(stored)
    again = "".join(starts(tmp_path, "--host", "0.0.0.0", "--token", lines=3))
    assert token not in again and "login#" not in again
    assert json.loads((tmp_path / "state/access.json").read_text()) == stored


@pytest.mark.parametrize(
    ("arguments", "word"),
    first_rows_fast(
        [
            (["--host", "0.0.0.0"], "token"),
            (["--generate-token", "--allow-scripts"], "--allow-scripts"),
            (["--host", "0.0.0.0", "--token", "guessable"], "20 to 200 characters"),
            (["--host", "::"], "token"),
            (["--host", "0.0.0.0", "--token"], "--generate-token"),
            (["--host", "gpu-box", "--generate-token"], "address of this machine"),
        ],
        3,
    ),
)
def test_a_start_that_would_be_open_ends_at_once(tmp_path: Path, arguments: list[str], word: str) -> None:
    command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--port", str(free_port()), "--home", str(tmp_path), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and word in ended.stderr and "Traceback" not in ended.stderr

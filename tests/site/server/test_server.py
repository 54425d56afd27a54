"""A real server: starts in a second, weighs little, never loads torch, leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.live_server import REPOSITORY, LiveServer, free_port, start_server

HEAVY = ("libtorch", "/torch/", "/diffusers/", "/transformers/", "pyarrow", "numpy")
MEMORY_LIMIT_BYTES = 150e6


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with start_server(tmp_path_factory.mktemp("home")) as live:
        yield live


def test_the_home_is_created_completely(server: LiveServer) -> None:
    assert (server.home / "config").is_dir()
    assert (server.home / "state/simpletuner.sqlite3").is_file()
    assert oct((server.home / "state/secret_key").stat().st_mode)[-3:] == "600"


def test_health_names_database_workers_and_disk(server: LiveServer) -> None:
    answer = server.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "healthy"
    assert {name: check["status"] for name, check in body["checks"].items()} == {
        "database": "healthy",
        "workers": "healthy",
        "disk": "healthy",
    }
    assert body["checks"]["workers"]["pid"] in server.pids
    assert server.get("/health/").status_code == 200


def test_the_start_page_leads_on(server: LiveServer) -> None:
    page = server.get("/").text
    for address in ("/docs", "/redoc", "/admin/", "/api/configs", "/api/configs/examples", "/health", "/openapi.json"):
        assert f'href="{address}"' in page
        assert server.get(address, headers={"Accept": "text/html,*/*;q=0.8"}).status_code == 200, address


@pytest.mark.parametrize("page", ["/docs", "/redoc", "/admin/", "/api/configs"])
def test_pages_load_nothing_from_elsewhere(server: LiveServer, page: str) -> None:
    text = server.get(page, headers={"Accept": "text/html"}).text
    sources = [
        part.split('"')[1]
        for key in ('src="', 'link rel="stylesheet" href="', 'stylesheet" type="text/css" href="')
        for part in text.split(key[:-1])[1:]
    ]
    assert sources
    for source in sources:
        assert source.startswith(("/", "data:")), source
        if source.startswith("/"):
            assert server.get(source).status_code == 200, source


def test_the_schema_is_openapi_3_1_with_both_tags(server: LiveServer) -> None:
    schema = server.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert schema["info"]["title"] == "SimpleTuner"
    assert {tag["name"] for tag in schema["tags"]} == {"configurations", "training"}
    used = {tag for calls in schema["paths"].values() for call in calls.values() if isinstance(call, dict) for tag in call["tags"]}
    assert used == {"configurations", "training"}


def test_the_guard_stands_before_everything(server: LiveServer) -> None:
    for path in (
        "/",
        "/docs",
        "/openapi.json",
        "/health",
        "/admin/",
        "/api/configs",
        "/api/training/events/stream",
        "/static/admin/css/base.css",
    ):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
                with server.client() as client:
                    answer = client.request(method, path, headers=headers)
                assert answer.status_code == 403, (method, path, headers)
                assert answer.json()["detail"]


def handshake(server: LiveServer, path: str, *headers: str) -> str:
    """The status line that a WebSocket handshake is answered with."""
    lines = [
        f"GET {path} HTTP/1.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode())
        return connection.recv(4096).decode().splitlines()[0]


def test_websocket_handshakes_are_guarded(server: LiveServer) -> None:
    stream, host = "/api/training/events/stream", f"Host: localhost:{server.port}"
    assert " 101 " in handshake(server, stream, host)
    assert " 101 " in handshake(server, stream, host, f"Origin: http://localhost:{server.port}")
    assert " 403 " in handshake(server, stream, "Host: evil.example")
    assert " 403 " in handshake(server, stream, host, "Origin: https://evil.example")
    assert " 403 " in handshake(server, stream, host, "Sec-Fetch-Site: cross-site")
    assert " 403 " in handshake(server, "/nowhere", host)


def test_an_unknown_address_answers_programs_in_json(server: LiveServer) -> None:
    answer = server.get("/api/nowhere")
    assert answer.status_code == 404
    assert answer.json()["problems"] == []


def test_a_long_body_is_refused_by_its_length(server: LiveServer) -> None:
    answer = server.post("/api/configs/environments", content=b" " * (9 * 1024 * 1024))
    assert answer.status_code == 413
    assert answer.json()["detail"]


def test_no_process_of_the_server_maps_torch(server: LiveServer) -> None:
    server.get("/openapi.json")
    server.post("/api/training/validate")
    processes = server.processes()
    assert len(processes) >= 5, "web, worker, sentinel, task workers"
    for process in processes:
        mapped = [entry.path for entry in process.memory_maps() if any(name in entry.path for name in HEAVY[:4])]
        assert mapped == [], process.cmdline()


def test_no_process_of_the_server_looks_like_an_engine(server: LiveServer) -> None:
    assert not [process for process in server.processes() if "trainer_engine" in process.cmdline()]


def test_the_second_server_on_a_home_is_refused(server: LiveServer) -> None:
    command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--port", str(free_port()), "--home", str(server.home)]
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert "Another server" in second.stderr
    assert server.get("/health").status_code == 200


def test_a_server_starts_again_on_its_home_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in range(2):
        server = start_server(tmp_path)
        processes = server.processes()
        assert server.stop() == 0
        _, alive = psutil.wait_procs(processes, timeout=5)
        assert alive == []
    assert "Traceback" not in server.log.read_text()


def test_a_server_ends_quietly_with_streams_open(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    request = f"GET /api/training/events/stream HTTP/1.1\r\nHost: localhost:{server.port}\r\n\r\n".encode()
    streams = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
    try:
        for stream in streams:
            stream.sendall(request)
            assert b"200" in stream.recv(4096)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
    finally:
        for stream in streams:
            stream.close()
    assert "Traceback" not in server.log.read_text()


def test_ctrl_c_ends_a_server_too(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    processes = server.processes()
    os.kill(server.pid, signal.SIGINT)
    assert server.process is not None
    assert server.process.wait(20) == 0
    assert psutil.wait_procs(processes, timeout=5)[1] == []


def test_a_worker_that_was_killed_is_replaced(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        first = server.get("/health").json()["checks"]["workers"]["pid"]
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while server.get("/health").json()["checks"]["workers"].get("pid") in (first, None):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_the_worker_leaves_when_its_server_was_killed(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    processes = server.processes()
    os.kill(server.pid, signal.SIGKILL)
    assert psutil.wait_procs(processes, timeout=15)[1] == []
    server.process = None
    with server.start():
        assert server.get("/health").json()["status"] == "healthy"


def test_every_page_says_that_nothing_is_loaded_from_elsewhere(server: LiveServer) -> None:
    for path in ("/", "/docs", "/redoc", "/admin/", "/api/configs", "/health"):
        assert server.get(path).headers["Content-Security-Policy"].startswith("default-src 'self';"), path


def test_the_web_process_is_small_when_idle(server: LiveServer) -> None:
    assert psutil.Process(server.pid).memory_info().rss < MEMORY_LIMIT_BYTES


def test_manage_py_serves_the_same(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, str(REPOSITORY / "manage.py"), "server", "--port", str(port), "--home", str(tmp_path / "home")]
    environment = {**os.environ, "SIMPLETUNER_HOME": str(tmp_path / "unused"), "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    live = LiveServer(tmp_path / "home", port, process=process)
    (tmp_path / "home").mkdir()
    live.log.touch()
    try:
        live.wait_until_ready()
        assert json.loads(live.get("/health").text)["checks"]["disk"]["path"] == str(tmp_path / "home/state")
    finally:
        live.stop()

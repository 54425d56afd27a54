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

from tests.helpers.live_server import REPOSITORY, LiveServer, start_server
from tests.helpers.ports import free_port

HEAVY = ("libtorch", "/torch/", "/diffusers/", "/transformers/", "pyarrow", "numpy")
MEMORY_LIMIT_BYTES = 150e6
JSON = {"Accept": "application/json"}


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
    pages = ("/", "/docs", "/openapi.json", "/health", "/admin/", "/static/admin/css/base.css")
    foreign = ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"})
    for path in (*pages, "/api/configs", "/api/training/events/stream"):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            for headers in foreign:
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


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=x; charset=é"])
@pytest.mark.parametrize("path", ["/api/training/validate", "/api/training/start", "/api/training/cancel", "/api/configs/environments"])
def test_a_form_that_cannot_be_read_is_reported_as_json(server: LiveServer, path: str, kind: str) -> None:
    answer = server.post(path, content=b"junk", headers={**JSON, "Content-Type": kind.encode()})
    assert 400 <= answer.status_code < 500
    assert answer.json()["detail"]


def test_a_form_is_read_completely(server: LiveServer) -> None:
    fields = {"--optimizer": "adam?", "--seed": "<token> & é", "__active_tab__": "model"}
    for answer in (
        server.post("/api/training/validate?x=1&y=%20", data=fields, headers=JSON),
        server.post("/api/training/validate/", files={name: (None, value) for name, value in fields.items()}, headers=JSON),
    ):
        assert answer.status_code == 422 and answer.reason_phrase == "Unprocessable Entity"
        reported = {problem["option"]: problem["got"] for problem in answer.json()["problems"]}
        assert (reported["optimizer"], reported["seed"]) == ("adam?", "<token> & é")


def test_an_environment_is_made_from_fields_with_dashes(server: LiveServer) -> None:
    fields = {"--name": "dashes", "--model_family": "pixart_sigma", "--model_type": "full", "__active_tab__": "model"}
    assert server.post("/api/configs/environments", json=fields).json()["environment"]["name"] == "dashes"
    again = server.post("/api/configs/environments", data={**fields, "--name": "dashes-2"})
    assert again.json()["message"] == "Environment 'dashes-2' created"


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


def test_a_server_ends_on_sigterm_and_ctrl_c_starts_again_on_its_home_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start_server(tmp_path)
        processes = server.processes()
        assert server.process is not None
        server.process.send_signal(number)
        assert server.process.wait(20) == 0
        assert psutil.wait_procs(processes, timeout=5)[1] == []
    assert "Traceback" not in server.log.read_text()


def test_a_killed_worker_is_replaced_and_the_new_one_leaves_with_a_killed_server(tmp_path: Path) -> None:
    server = start_server(tmp_path)
    first = server.get("/health").json()["checks"]["workers"]["pid"]
    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while server.get("/health").json()["checks"]["workers"].get("pid") in (first, None):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    processes = server.processes()
    os.kill(server.pid, signal.SIGKILL)
    assert psutil.wait_procs(processes, timeout=15)[1] == []
    server.process = None
    with server.start():
        assert server.get("/health").json()["status"] == "healthy"


def test_every_page_says_that_nothing_is_loaded_from_elsewhere(server: LiveServer) -> None:
    for path in ("/", "/docs", "/redoc", "/admin/", "/api/configs", "/health"):
        policy = server.get(path).headers["Content-Security-Policy"]
        assert policy.startswith(("default-src 'self';", "default-src 'none';")) and "http" not in policy, path


@pytest.mark.slow
def test_the_web_process_is_small_when_idle(tmp_path: Path) -> None:
    with start_server(tmp_path) as idle:
        assert idle.get("/health").status_code == 200
        assert psutil.Process(idle.pid).memory_info().rss < MEMORY_LIMIT_BYTES


@pytest.mark.slow
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

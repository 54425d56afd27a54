"""The processes that the demo starts: one that makes the base model with torch, and a real server on a free port."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from simpletuner_site import DEFAULT_PORT
from simpletuner_site.demo.folders import REPOSITORY, DemoFolders

START_SECONDS = 60.0
STOP_SECONDS = 30.0


class ServerFailed(Exception):
    """The server did not start; the message is the end of its log."""


def free_port() -> int:
    """The port of the tutorial's commands if it is free, else another free one of loopback."""
    for wanted in (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
    raise ServerFailed("This machine has no free port.")


def start(folders: DemoFolders, port: int) -> subprocess.Popen[bytes]:
    """Start ``simpletuner server`` on the demo's home, offline, with the demo's model cache."""
    variables = {**os.environ, "HF_HOME": str(folders.hub), "HF_HUB_OFFLINE": "1", "SIMPLETUNER_HOME": str(folders.root)}
    for name in ("HF_HUB_CACHE", "SIMPLETUNER_TOKEN", "SIMPLETUNER_NEEDS_TOKEN"):
        variables.pop(name, None)
    command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--port", str(port), "--home", str(folders.root)]
    with folders.server_log.open("ab") as log:
        return subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)


def wait_until_ready(process: subprocess.Popen[bytes], client: httpx.Client, folders: DemoFolders) -> None:
    """Return when server and worker are ready. Raises ServerFailed."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health").json()["checks"]["workers"]["status"] == "healthy":
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ServerFailed(folders.server_log.read_text(errors="replace")[-2000:])


@contextmanager
def running_server(folders: DemoFolders, *, keep: bool) -> Iterator[tuple[httpx.Client, int]]:
    """A client and the process id of a server that runs during the block; with ``keep`` it keeps running if the block succeeds."""
    port = free_port()
    process = start(folders, port)
    is_done = False
    try:
        with httpx.Client(base_url=f"http://localhost:{port}", timeout=60) as client:
            wait_until_ready(process, client, folders)
            yield client, process.pid
        is_done = True
    finally:
        if not (keep and is_done):
            process.terminate()
            process.wait(STOP_SECONDS)


TINY_MODEL = "trainer_engine.families.pixart_sigma.tiny"


class ModelNotMade(Exception):
    """The subprocess failed; the message is the end of what it printed."""


def make_base_model(folders: DemoFolders) -> None:
    """A PixArt Sigma of some million parameters in the real layout, in the demo's hub cache under the real repository's id.

    Raises ModelNotMade.
    """
    command = [
        sys.executable,
        "-m",
        TINY_MODEL,
        "--size",
        "demo",
        "--repo-id",
        REPOSITORY,
        "--hf-home",
        str(folders.hub),
        str(folders.model),
    ]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode:
        raise ModelNotMade(made.stderr[-2000:])

"""SIGTERM ends a server whatever its threads do."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.live_server import REPOSITORY, start_server
from tests.helpers.params import first_fast

STUCK = """
import os, pathlib, re, sys, threading, time
def wait():
    while not pathlib.Path({flag!r}).exists():
        time.sleep(0.05)
    if "server" in sys.argv:
        pathlib.Path({flag!r} + ".seen").touch()
        {does}
def hurry():
    # the worker waits two seconds for its server instead of twelve
    while not hasattr(sys.modules.get("simpletuner_site.server.worker"), "run_worker"):
        time.sleep(0.05)
    sys.modules["simpletuner_site.server.worker"].SERVER_GRACE_SECONDS = 2.0
threading.Thread(target=wait, daemon={daemon}).start()
if "worker" in sys.argv:
    threading.Thread(target=hurry, daemon=True).start()
"""
WAYS = {
    "holds the interpreter": ('re.match("(a+)+$", "a" * 64 + "!")', True),
    "waits for ever": ("time.sleep(600)", False),
}


@pytest.mark.parametrize("way", first_fast(list(WAYS)))
def test_a_server_with_a_thread_that_never_ends_can_be_ended(tmp_path: Path, way: str) -> None:
    does, daemon = WAYS[way]
    flag = tmp_path / "flag"
    (tmp_path / "sitecustomize.py").write_text(STUCK.format(flag=str(flag), does=does, daemon=daemon))
    server = start_server(tmp_path / "home", environment={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"})
    processes = server.processes()
    flag.touch()
    while not flag.with_name("flag.seen").exists():
        time.sleep(0.05)
    code = server.stop(timeout=90)
    assert code == (-signal.SIGKILL if daemon else 0)
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    if daemon:
        said = server.log.read_text()
        assert "did not end within" in said and 'sitecustomize.py", line' in said

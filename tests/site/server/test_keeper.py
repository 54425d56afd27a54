"""The worker beside a server: started again when it dies, gone with its whole tree when the server stops."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from simpletuner_site.server import keeper as worker_keeper
from simpletuner_site.server.keeper import WorkerKeeper
from simpletuner_site.server.state import WorkerState, read_worker_state, write_worker_state

FORKING = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
time.sleep(600)
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def eventually(is_true: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def keeper(program: str) -> WorkerKeeper:
    return WorkerKeeper([sys.executable, "-c", program])


def test_a_worker_that_dies_is_started_again() -> None:
    kept = keeper("import time; time.sleep(600)")
    kept.start()
    try:
        eventually(lambda: kept.pid)
        first = kept.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        eventually(lambda: kept.pid not in (None, first))
    finally:
        kept.stop()
    assert kept.pid is None


def test_stopping_takes_the_worker_s_children_too() -> None:
    kept = keeper(FORKING)
    kept.start()
    eventually(lambda: kept.pid and psutil.Process(kept.pid).children())
    assert kept.pid is not None
    tree = [psutil.Process(kept.pid), *psutil.Process(kept.pid).children(recursive=True)]
    kept.stop()
    _, alive = psutil.wait_procs(tree, timeout=5)
    assert alive == []


def test_children_of_a_killed_worker_end() -> None:
    kept = keeper(FORKING)
    kept.start()
    try:
        eventually(lambda: kept.pid and psutil.Process(kept.pid).children())
        assert kept.pid is not None
        orphans = psutil.Process(kept.pid).children(recursive=True)
        os.kill(kept.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(orphans, timeout=5)
        assert alive == []
    finally:
        kept.stop()


def test_a_worker_that_does_not_listen_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_keeper, "STOP_GRACE_SECONDS", 0.3)
    kept = keeper(STUBBORN)
    kept.start()
    eventually(lambda: kept.pid)
    time.sleep(0.3)
    kept.stop()
    assert kept.pid is None


@pytest.mark.parametrize(("handler", "is_heard"), [(signal.SIG_IGN, False), (signal.default_int_handler, True)])
def test_a_ctrl_c_that_the_server_ignores_asks_the_worker_for_nothing(handler: Any, is_heard: bool) -> None:
    """As of a server in the background of a script. The worker killed it, because it did not end."""
    before = signal.signal(signal.SIGINT, handler)
    kept = keeper("import time; time.sleep(600)")
    try:
        kept.start()
        eventually(lambda: kept.pid)
        time.sleep(0.2)
        assert faulthandler.unregister(signal.SIGINT) is is_heard
    finally:
        kept.stop()
        signal.signal(signal.SIGINT, before)


def test_stopping_before_starting_is_harmless() -> None:
    keeper("pass").stop()


def test_a_worker_is_seen_by_what_it_wrote(tmp_path: Path) -> None:
    assert read_worker_state(tmp_path) is None
    write_worker_state(tmp_path, os.getpid())
    assert read_worker_state(tmp_path) == WorkerState(os.getpid(), psutil.Process().create_time())


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"pid": 1, "started_at": 5.0}', '{"pid": 99999999, "started_at": 1.0}', "null", "[" * 9_000]
)
def test_a_worker_that_is_gone_is_not_taken_for_another_process(tmp_path: Path, content: str) -> None:
    (tmp_path / "worker.json").write_text(content)
    assert read_worker_state(tmp_path) is None

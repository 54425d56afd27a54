"""``/api/system`` says what the machine has, and the driver's tool costs a request little."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from tests.helpers.jobs import leased_job
from training.engine import hardware

SMI = "NVIDIA H200, 1024, 144384, 37, 41, 570.1\nGPU, with a comma, 0, 1024, [N/A], [N/A], 1\nbroken\nNo memory, [N/A], [N/A], 1, 2, 3\n"


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "DRIVER", hardware.Driver())


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of ``nvidia-smi`` that notes each call."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\nprintf '%s' '{SMI}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tool


@pytest.mark.django_db
def test_the_machine_is_described(client: Client, home: Path, tool: Path) -> None:
    leased_job(home)
    said = client.get("/api/system").json()
    assert said["memory"]["total_bytes"] > said["memory"]["free_bytes"] > 0 and 0 < said["memory"]["used_percent"] < 100
    assert said["disk"]["free_bytes"] > 0 and said["cpu"]["cores"] >= 1
    assert (said["slots"], said["running"]) == (1, 1)
    assert said["versions"]["torch"] and said["versions"]["django"] and said["device"] in ("cuda", "mps", "cpu")
    assert said["gpus"][0] == {
        "name": "NVIDIA H200",
        "used_bytes": 1024 << 20,
        "total_bytes": 144384 << 20,
        "busy_percent": 37,
        "temperature_celsius": 41,
        "driver": "570.1",
    }
    assert (said["gpus"][1]["name"], said["gpus"][1]["busy_percent"], len(said["gpus"])) == ("GPU, with a comma", None, 2)


def test_the_driver_is_asked_once_for_many_requests(tool: Path) -> None:
    for _ in range(3):
        assert len(hardware.DRIVER.gpus()) == 2
    assert (tool.parent / "calls").read_text() == "called\n"


def test_a_driver_that_hangs_delays_one_request_and_gives_the_others_its_last_answer(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = hardware.DRIVER.gpus()
    hangs, asked = threading.Event(), []
    monkeypatch.setattr(hardware, "FRESH_SECONDS", -1)
    monkeypatch.setattr(hardware, "LONGEST_SECONDS", 0.05)
    monkeypatch.setattr(hardware, "listed", lambda: asked.append(1) or hangs.wait(60) or ())
    try:
        assert [hardware.DRIVER.gpus() for _ in range(20)] == [known] * 20 and len(asked) == 1
    finally:
        hangs.set()


@pytest.mark.django_db
@pytest.mark.parametrize("failure", [OSError("gone"), subprocess.TimeoutExpired("nvidia-smi", 2), subprocess.CalledProcessError(9, "x")])
def test_a_driver_that_fails_costs_nothing_but_its_gpus(
    client: Client, home: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def run(*_: object, **__: object) -> Any:
        raise failure

    monkeypatch.setattr(hardware.shutil, "which", lambda name: "/bin/true")
    monkeypatch.setattr(hardware.subprocess, "run", run)
    assert client.get("/api/system").json()["gpus"] == [] and client.get("/").status_code == 200


def test_a_folder_that_is_gone_has_no_disk_and_a_package_that_is_not_there_no_version(tmp_path: Path) -> None:
    assert hardware.disk(tmp_path / "gone") is None
    assert hardware.versions(["no-such-package"]) == {"no-such-package": None}

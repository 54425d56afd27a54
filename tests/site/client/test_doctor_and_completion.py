"""``simpletuner doctor`` finds what is wrong; completion knows commands, options and environments."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from simpletuner_site import cli
from simpletuner_site.client import doctor, installation
from simpletuner_site.client.completion import SCRIPTS, candidates
from simpletuner_site.client.findings import Verdict
from simpletuner_site.server.state import write_server_state
from tests.helpers.live_server import REPOSITORY
from training.engine.hardware import Gpu

GPU = Gpu(name="A100", used_bytes=0, total_bytes=80 * 10**9, busy_percent=0, temperature_celsius=40, driver="550")
TORCH = {"version": "2.13.0", "cuda": None, "hip": None, "device": "cpu", "names": []}


def texts(findings: Any, verdict: Verdict) -> str:
    return "\n".join(f"{one.text} -> {one.todo}" for one in findings if one.verdict is verdict)


def test_a_healthy_home_has_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--home", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"python", "packages", "devices", "torch", "memory", "disk", "database", "server"} <= {one["subject"] for one in found}
    assert all(one["verdict"] != "problem" for one in found)


def test_every_finding_that_is_not_fine_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LITTLE_MEMORY_BYTES", 10**18)
    monkeypatch.setattr(doctor, "LITTLE_DISK_BYTES", 10**18)
    monkeypatch.setattr(installation, "torch_facts", lambda: TORCH)
    found = doctor.examine(tmp_path)
    bad = [one for one in found if one.verdict is not Verdict.OK]
    assert len(bad) >= 2 and all(one.todo for one in bad)


def test_a_torch_that_does_not_see_the_gpu_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.hardware.DRIVER, "gpus", lambda: (GPU,))
    for facts, words in ((TORCH, "pip install"), ({**TORCH, "cuda": "13.0"}, "driver"), ({"error": "no module"}, "pip install")):
        monkeypatch.setattr(installation, "torch_facts", lambda facts=facts: facts)
        assert words in texts(doctor.check_devices(tmp_path), Verdict.PROBLEM)
    monkeypatch.setattr(installation, "torch_facts", lambda: {**TORCH, "cuda": "13.0", "device": "cuda", "names": ["A100"]})
    assert texts(doctor.check_devices(tmp_path), Verdict.PROBLEM) == ""


def test_torch_is_asked_in_another_process() -> None:
    assert installation.torch_facts()["device"] in ("cpu", "cuda", "mps")
    code = "from simpletuner_site.client import doctor, installation; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_a_damaged_database_and_open_secrets_are_found(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "simpletuner.sqlite3").write_bytes(b"not a database" * 100)
    (state / "secret_key").write_text("x")
    (state / "secret_key").chmod(0o644)
    assert ".recover" in texts(doctor.check_database(tmp_path), Verdict.PROBLEM)
    assert "chmod go=" in texts(doctor.check_permissions(tmp_path), Verdict.WARNING)


def test_a_taken_port_and_a_server_without_a_worker_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "USUAL_PORT", taken.getsockname()[1])
        assert "--port" in texts(doctor.check_server(tmp_path), Verdict.WARNING)
    (tmp_path / "state").mkdir()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        write_server_state(tmp_path / "state", process.pid, "http://localhost:1")
        assert "no worker" in texts(doctor.check_server(tmp_path), Verdict.PROBLEM)
        process.kill()


def test_a_run_that_nobody_follows_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "runs" / "a-run"
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(folder)]) as process:
        deadline = time.monotonic() + 20
        while not (found := texts(doctor.check_orphans(tmp_path), Verdict.WARNING)) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert f"kill {process.pid}" in found


def test_a_wrong_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLETUNER_SLOTS", "many")
    assert "SIMPLETUNER_SLOTS" in texts(doctor.check_variables(tmp_path), Verdict.PROBLEM)


distribution = metadata.distribution


class Package:
    def __init__(self, *requires: str) -> None:
        self.requires, self.version = requires, "3.1.6"


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (Package("Django>=1", "no-such-package>=1"), "no-such-package is not installed"),
        (Package("Django>=99"), "Django is"),
        (Package("fastapi"), "another project"),
        (Package("Django>=1", "no-such-package; extra == 'cuda'"), ""),
    ],
)
def test_missing_old_and_foreign_packages_are_found(package: Package, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.metadata, "distribution", lambda name: package if name == installation.NAME else distribution(name))
    found = texts(installation.check_packages(tmp_path), Verdict.PROBLEM)
    assert words in found and bool(found) == bool(words)


# ---- completion ----
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sta"], {"start", "status"}),
        (["env", ""], {"list", "create", "show", "edit", "activate", "copy", "export", "import"}),
        (["env", "activate", "fi"], {"first"}),
        (["env", "copy", "first", ""], set()),
        (["train", "--environment", ""], {"first", "second"}),
        (["start", "-o", "max_train_st"], {"max_train_steps="}),
        (["options", "lr_warmup_s"], {"lr_warmup_steps"}),
        (["env", "create", "x", "--type", ""], {"lora", "full"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["server", "--generate"], {"--generate-token"}),
    ],
)
def test_words_are_completed(words: list[str], expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        (tmp_path / "config" / name).mkdir(parents=True)
        (tmp_path / "config" / name / "config.json").write_text("{}")
    monkeypatch.setenv("SIMPLETUNER_HOME", str(tmp_path))
    found = set(candidates(cli.build_parser(), words))
    assert found == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert printed == SCRIPTS[shell] and "simpletuner __complete" in printed
    if found := shutil.which(shell):
        assert subprocess.run([found, "-n"], input=printed, text=True, capture_output=True).stderr == ""


def test_bash_completes_through_the_script(tmp_path: Path) -> None:
    program = tmp_path / "simpletuner"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m simpletuner_site.cli "$@"\n')
    program.chmod(0o755)
    script = (
        f'{SCRIPTS["bash"]}\nPATH={tmp_path}:$PATH COMP_WORDS=(simpletuner env act) COMP_CWORD=2\n_simpletuner; echo "${{COMPREPLY[@]}}"'
    )
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert ended.stdout.split() == ["activate"], ended.stderr


def test_the_help_is_printed_without_heavy_imports() -> None:
    code = (
        "import sys; from simpletuner_site import cli; cli.build_parser().format_help(); "
        "print([name for name in ('django', 'httpx', 'rich', 'pydantic', 'psutil', 'asyncio') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip() == "[]"

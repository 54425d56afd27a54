"""The command line, from outside."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner_site import cli
from simpletuner_site.server.server import CannotServe, bind_address, check_port, claim_home
from tests.helpers.live_server import REPOSITORY
from tests.helpers.ports import free_port


def simpletuner(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SIMPLETUNER_HOME"}
    environment |= {"PYTHONPATH": str(REPOSITORY), **variables}
    command = [sys.executable, "-m", "simpletuner_site.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "*", "127.0.0.1.evil.example", "10.0.0.1"])
def test_an_address_that_others_could_reach_is_refused_with_a_word_about_tokens(host: str) -> None:
    with pytest.raises(CannotServe, match="token"):
        bind_address(host)


def test_such_a_start_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    ended = simpletuner("server", "--host", "0.0.0.0", "--port", str(free_port()), cwd=tmp_path)
    assert ended.returncode not in (0, None)
    assert "token" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("LOCALHOST", "127.0.0.1"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("127.0.0.2", "127.0.0.2"),
    ],
)
def test_loopback_goes_by_several_names(host: str, address: str) -> None:
    assert bind_address(host) == address


def test_a_port_that_is_taken_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotServe, match=str(port)):
            check_port("127.0.0.1", port)
        ended = simpletuner("server", "--port", str(port), "--home", str(tmp_path), cwd=tmp_path)
    assert ended.returncode == cli.EXIT_USAGE
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_home_is_served_once(tmp_path: Path) -> None:
    program = f"from pathlib import Path; from simpletuner_site.server.server import claim_home; claim_home(Path({str(tmp_path)!r}))"
    with claim_home(tmp_path):
        second = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert "Another server" in second.stderr
    third = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert third.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["server", "--port", "0"],
        ["server", "--port", "70000"],
        ["server", "--slots", "none"],
        ["train"],
        ["fly"],
        ["server", "--hosts", "x"],
    ],
)
def test_a_wrong_command_line_is_explained(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: simpletuner" in capsys.readouterr().err


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    ended = simpletuner("server", cwd=tmp_path, SIMPLETUNER_SLOTS="many")
    assert ended.returncode == cli.EXIT_USAGE
    assert "SIMPLETUNER_SLOTS" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_version_is_printed_without_loading_django(tmp_path: Path) -> None:
    program = "import sys; import simpletuner_site.cli; print([n for n in ('django', 'torch', 'pydantic', 'twisted') if n in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]"
    assert simpletuner("--version", cwd=tmp_path).stdout.startswith("simpletuner ")


def test_the_database_is_made_on_request_and_only_once(tmp_path: Path) -> None:
    first = simpletuner("migrate", "--home", str(tmp_path), cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "state/simpletuner.sqlite3").is_file()
    assert (tmp_path / "config").is_dir()
    again = simpletuner("migrate", "--home", str(tmp_path), cwd=tmp_path)
    assert "is up to date" in again.stdout


def test_a_home_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = simpletuner("server", "--home", str(tmp_path / "file"), cwd=tmp_path)
    assert ended.returncode == cli.EXIT_USAGE
    assert "Traceback" not in ended.stderr


def test_export_hands_everything_on_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command: called.append(command) or 20)
    assert cli.main(["export", "adapter", "--to", "merged", "--output", "out"]) == 20
    assert called == [[sys.executable, "-m", "trainer_engine.export", "adapter", "--to", "merged", "--output", "out"]]

"""Folders that must not go together are refused before the server starts."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from environments.places import INSTALLED
from simpletuner_site.environment import BadEnvironment, ProcessEnvironment
from simpletuner_site.server.boot import make_folders
from simpletuner_site.server.home_checks import check_places
from tests.helpers.live_server import REPOSITORY, start_server


@pytest.fixture
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of the server's user, an allowed root."""
    (tmp_path / "person").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    return tmp_path / "person"


def process(tmp_path: Path, **settings: object) -> ProcessEnvironment:
    make_folders(tmp_path / "served")
    return ProcessEnvironment(home=tmp_path / "served", **settings)  # type: ignore[arg-type]


def test_a_hooks_folder_where_requests_may_write_is_refused(tmp_path: Path, person: Path) -> None:
    (person / "hooks").mkdir()
    with pytest.raises(BadEnvironment, match="chmod a-w"):
        check_places(process(tmp_path, hooks=(person / "hooks",)))
    with pytest.raises(BadEnvironment, match="SIMPLETUNER_HOOKS lists .*missing"):
        check_places(process(tmp_path, hooks=(person / "missing",)))


def test_a_hooks_folder_that_this_account_may_not_write_to_is_taken(tmp_path: Path, person: Path) -> None:
    (person / "hooks").mkdir(mode=0o555)
    check_places(process(tmp_path, hooks=(person / "hooks",)))


def test_the_hooks_folder_of_the_state_and_one_outside_of_the_roots_are_taken(tmp_path: Path) -> None:
    check_places(process(tmp_path, hooks=(Path("/opt/hooks"), tmp_path / "served/state/hooks" / "mine"), allow_scripts=True))
    check_places(process(tmp_path, hooks=(Path("/opt/hooks"),)))


def test_a_link_to_a_hooks_folder_is_judged_by_its_real_place(tmp_path: Path, person: Path) -> None:
    (person / "hooks").mkdir()
    (tmp_path / "link").symlink_to(person / "hooks")
    with pytest.raises(BadEnvironment, match="where runs write"):
        check_places(process(tmp_path, hooks=(tmp_path / "link",)))


def test_a_hooks_folder_that_holds_a_root_is_refused(tmp_path: Path, person: Path) -> None:
    for folder in (person, tmp_path):
        with pytest.raises(BadEnvironment, match="a folder of their own"):
            check_places(process(tmp_path, hooks=(folder,)))


@pytest.mark.parametrize("root", ["served/state", "served/state/runs", "served/state/hooks/x", INSTALLED / "training"])
def test_a_root_that_would_open_what_stays_closed_is_refused(tmp_path: Path, root: str | Path) -> None:
    with pytest.raises(BadEnvironment, match="--root or SIMPLETUNER_ROOTS"):
        check_places(process(tmp_path, roots=(tmp_path / root,)))


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadEnvironment, match="which is a file"):
        check_places(process(tmp_path, roots=(tmp_path / "file",)))


def test_a_server_with_an_open_hooks_folder_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "hooks").mkdir()
    command = [sys.executable, "-m", "simpletuner_site.cli", "server", "--home", str(tmp_path / "home"), "--port", "1"]
    answer = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "SIMPLETUNER_HOOKS": str(tmp_path / "hooks")}, capture_output=True, text=True
    )
    assert answer.returncode == 2 and "SIMPLETUNER_HOOKS lists" in answer.stderr, answer.stderr


def test_a_root_of_the_command_line_and_of_the_variable_are_open_to_requests_and_the_state_is_private(tmp_path: Path) -> None:
    """Folders of the system's account stand for disks that are called as nobody foresaw."""
    named, listed, closed = Path("/usr/share"), Path("/usr/lib"), Path("/srv")
    arguments, variables = ("--root", str(named)), {"SIMPLETUNER_ROOTS": str(listed)}
    with start_server(tmp_path / "home", arguments=arguments, environment=variables) as server:
        found = {}
        for folder in (named, listed, closed):
            answer = server.post("/api/training/validate", data={"--init_lora": str(folder)}, headers={"Accept": "application/json"}).json()
            found[folder] = [problem for problem in answer["problems"] if problem["option"] == "init_lora"]
        assert not found[named] and not found[listed]
        assert [problem["code"] for problem in found[closed]] == ["outside_roots"]
        assert "--root" in found[closed][0]["hint"] and "SIMPLETUNER_ROOTS" in found[closed][0]["hint"]
        state = tmp_path / "home/state"
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        open_files = [path for path in state.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
        assert not open_files

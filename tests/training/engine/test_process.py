"""Which process is a run's, what it is given of the server's environment, and what is known when it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.jobs import FAKE_ENGINE
from trainer_engine.contract.run import RunFolder
from training.engine import process
from training.engine.process import EngineIdentity, passed_environment

SECRETS = ("SIMPLETUNER_SECRET_KEY", "DATABASE_URL", "REDIS_URL", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "SLURM_JWT")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run").create()


def start(folder: RunFolder, behaviour: str = "completes", steps: int = 3, seconds: float = 0.01) -> EngineIdentity:
    words = (str(FAKE_ENGINE), "trainer_engine", str(folder.path), behaviour, str(steps), str(seconds))
    return process.start(folder, [sys.executable, *words])


@given(st.dictionaries(st.sampled_from([*SECRETS, "PATH", "HF_HOME", "OMP_NUM_THREADS"]) | st.text(max_size=12), st.text(max_size=8)))
def test_an_engine_gets_listed_variables_and_no_secret(variables: dict[str, str]) -> None:
    passed = passed_environment(variables)
    assert not set(passed) & set(SECRETS)
    assert all(variables[name] == value for name, value in passed.items())
    assert {name for name in ("PATH", "HF_HOME", "OMP_NUM_THREADS") if name in variables} <= set(passed)
    assert passed_environment(variables, also=variables) == variables


def test_an_engine_gets_the_variables_that_comments_may_contain_and_no_other_of_the_server() -> None:
    variables = {"SIMPLETUNER_COMMENT_LAB": "lab", "SIMPLETUNER_SECRET_KEY": "key", "SIMPLETUNER_COMMENT": "x"}
    assert passed_environment(variables) == {"SIMPLETUNER_COMMENT_LAB": "lab"}


def test_a_withheld_variable_is_passed_where_the_operator_lists_it(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    monkeypatch.setenv("HF_HOME", "/hub")
    show = [sys.executable, "-c", "import os; print(os.environ.get('HF_TOKEN'), os.environ.get('HF_HOME'))"]
    for also, seen in (((), "None /hub"), (("HF_TOKEN",), "canary /hub")):
        folder.log.unlink(missing_ok=True)
        identity = process.start(folder, show, also=also, withheld=("HF_TOKEN",))
        assert process.exit_status(identity) == 0
        assert folder.log.read_text().strip() == seen


@pytest.mark.parametrize(("behaviour", "status"), [("completes", 0), ("fails", 40), ("dies", -signal.SIGKILL)])
def test_the_exit_status_of_a_child_is_known_after_it_ended(folder: RunFolder, behaviour: str, status: int) -> None:
    identity = start(folder, behaviour)
    assert process.exit_status(identity) == status
    assert not process.is_alive(identity) and process.find(folder) is None


def test_a_reused_process_id_is_another_process(folder: RunFolder) -> None:
    me = process.identify(os.getpid())
    assert me is not None and process.is_alive(me)
    for other in (EngineIdentity(me.pid, me.started_at - 1, me.boot_id), EngineIdentity(me.pid, me.started_at, "another boot")):
        assert not process.is_alive(other)
        process.ask_to_end(other, folder)  # this process would end
        process.kill(other, folder)
    assert process.identify(2**22 + 1) is None and process.start_ticks(2**22 + 1) is None


def test_a_process_that_only_names_the_folder_is_not_the_run_s(folder: RunFolder) -> None:
    """An editor with the log open, a shell in the folder."""
    others = [[sys.executable, "-c", "import time; time.sleep(30)", *words] for words in ((str(folder.path),), ("trainer_engine",))]
    started = [subprocess.Popen(command) for command in others]
    try:
        assert list(process.processes_of(folder)) == [] and process.find(folder) is None
        process.kill(None, folder)
        assert all(one.poll() is None for one in started)
    finally:
        for one in started:
            one.kill()
            one.wait()


def test_a_run_is_found_by_its_folder_and_killed_with_what_it_started(folder: RunFolder) -> None:
    identity = start(folder, "deaf", steps=1_000, seconds=0.05)
    assert process.find(folder) == identity
    deadline = time.monotonic() + 30
    while not folder.journal.exists() or b"training.progress" not in folder.journal.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.ask_to_end(identity, folder)
    assert not process.wait_until_gone(identity, folder, seconds=0.3)
    process.kill(identity, folder)
    assert process.wait_until_gone(identity, folder, seconds=5)
    process.kill(identity, folder)
    assert process.wait_until_gone(None, folder, seconds=0)


def test_a_started_process_can_be_found_at_once(folder: RunFolder) -> None:
    """The system shows a program's arguments only once it has loaded the program."""
    for _ in range(10):
        identity = process.start(folder, [sys.executable, "-c", "import time; time.sleep(30)", "trainer_engine", str(folder.path)])
        assert str(folder.path) in Path(f"/proc/{identity.pid}/cmdline").read_text().split("\0")
        process.kill(identity, folder)
        assert process.exit_status(identity) is not None


def test_the_log_of_a_run_is_private_and_appended_to(folder: RunFolder) -> None:
    for word in ("one", "two"):
        identity = process.start(folder, [sys.executable, "-c", f"print({word!r})"])
        assert process.exit_status(identity) == 0
    assert folder.log.read_text().split() == ["one", "two"]
    assert folder.log.stat().st_mode & 0o077 == 0


def test_many_ended_engines_are_reaped_and_the_last_ones_remembered(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "CHILDREN", [])
    monkeypatch.setattr(process, "MOST_REMEMBERED", 2)
    identities = [process.start(folder, ["/bin/sh", "-c", f"exit {number}"]) for number in range(4)]
    deadline = time.monotonic() + 20
    while any(child.poll() is None for child in process.CHILDREN):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.reap_children()
    assert [process.exit_status(identity) for identity in identities] == [None, None, 2, 3]
    assert subprocess.run(["ps", "-o", "stat=", "-p", str(identities[0].pid)], capture_output=True, text=True).stdout == ""

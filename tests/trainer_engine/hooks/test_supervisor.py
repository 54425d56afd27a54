"""The supervisor ends a hook on time, leaves no process behind, and copies its output to the log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.helpers.served_runs import wait_until
from trainer_engine.hooks import process
from trainer_engine.hooks.process import HookOutcome, RunningHook

SH = "/bin/sh"


def start(place: Path, script: str, *, seconds: float = 60, outlives: bool = False, **variables: str) -> RunningHook:
    return RunningHook(
        [SH, "-c", script],
        prefix="hook",
        seconds=seconds,
        environment={"PATH": os.environ["PATH"], **variables},
        folder=place,
        outlives=outlives,
    )


def ended(running: RunningHook) -> HookOutcome:
    found: HookOutcome = wait_until(running.poll, "the end of the hook", seconds=20)
    return found


def pid_in(path: Path) -> int:
    """The process id that a hook wrote into a file."""
    return int(wait_until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text(), f"{path}"))


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_supervisor_reports_exit_code_and_copies_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(start(tmp_path, "echo one; echo two >&2; printf three; exit 3")).code == 3
    assert capfd.readouterr().out.splitlines() == ["[hook] one", "[hook] two", "[hook] three"]


def test_supervisor_cuts_endless_output_and_the_hook_continues(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MOST_OUTPUT_BYTES", 100)
    assert ended(start(tmp_path, "yes 0123456789 | head -n 100000; exit 0")).succeeded
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) < 15
    assert lines[-1] == "[hook] (the rest of the output is not kept)"


def test_hook_sees_only_the_environment_it_is_given(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert ended(start(tmp_path, "env; pwd", FACT="1")).succeeded
    out = capfd.readouterr().out
    assert "hf_secret" not in out
    assert {line.partition("=")[0] for line in out.splitlines()} <= {
        "[hook] PATH", "[hook] FACT", "[hook] PWD", "[hook] LC_CTYPE", "[hook] SHLVL", "[hook] _", f"[hook] {tmp_path}",
    }  # fmt: skip


def test_supervisor_kills_the_process_group_after_the_time_limit(tmp_path: Path) -> None:
    running = start(tmp_path, "sleep 600 & echo $! > pid; trap '' TERM; sleep 600", seconds=0.5)
    assert ended(running).ended == "timed_out"
    assert not is_running(pid_in(tmp_path / "pid"))


def test_supervisor_kills_processes_that_a_hook_leaves_running(tmp_path: Path) -> None:
    assert ended(start(tmp_path, "sleep 600 & echo $! > pid")).succeeded
    wait_until(lambda: not is_running(pid_in(tmp_path / "pid")), "the end of the process that was left")


def test_let_go_ends_the_hook(tmp_path: Path) -> None:
    running = start(tmp_path, "echo $$ > pid; sleep 600")
    pid = pid_in(tmp_path / "pid")
    running.let_go()
    assert ended(running).ended == "cut_off"
    assert not is_running(pid)


def test_outcome_of_a_program_that_cannot_start_has_the_reason(tmp_path: Path) -> None:
    running = RunningHook([str(tmp_path / "none")], prefix="hook", seconds=9, environment={}, folder=tmp_path)
    assert (ended(running).ended, ended(running).error) == ("not_started", "No such file or directory")


ENGINE = """
import sys, time
from pathlib import Path
from trainer_engine.hooks.process import RunningHook
RunningHook(["/bin/sh", "-c", sys.argv[1]], prefix="hook", seconds=float(sys.argv[3]), environment={},
              folder=Path.cwd(), outlives=sys.argv[2] == "1").poll()
time.sleep(600)
"""


def killed_engine(place: Path, script: str, *, outlives: bool, seconds: float = 60) -> int:
    """Kill the process that started a hook, and return the process id of the hook."""
    with (place / "log").open("wb") as log:
        arguments = [script, "1" if outlives else "0", str(seconds)]
        engine = subprocess.Popen([sys.executable, "-c", ENGINE, *arguments], cwd=place, stdout=log, stderr=log)
    pid = pid_in(place / "pid")
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    return pid


def test_hook_ends_when_its_engine_is_killed(tmp_path: Path) -> None:
    pid = killed_engine(tmp_path, "/bin/echo $$ > pid; /bin/sleep 600", outlives=False)
    wait_until(lambda: not is_running(pid), "the end of the hook", seconds=20)


def test_background_hook_outlives_the_engine_until_its_time_limit(tmp_path: Path) -> None:
    pid = killed_engine(tmp_path, "/bin/echo $$ > pid; while true; do /bin/echo more; /bin/sleep 0.05; done", outlives=True, seconds=3)
    time.sleep(0.5)
    assert is_running(pid)
    size = (tmp_path / "log").stat().st_size
    assert not [one for one in psutil.process_iter() if str(tmp_path / "log") in open_files(one)], "it holds the run's log open"
    wait_until(lambda: not is_running(pid), "its time limit", seconds=20)
    assert (tmp_path / "log").stat().st_size == size


def open_files(one: psutil.Process) -> list[str]:
    try:
        return [file.path for file in one.open_files()]
    except psutil.Error:
        return []

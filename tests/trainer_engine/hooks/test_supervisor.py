"""A program of a run ends when it must, leaves nothing behind, and says what it has to say in the log."""

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
from trainer_engine.hooks.process import Outcome, RunningScript

SH = "/bin/sh"


def start(place: Path, script: str, *, seconds: float = 60, outlives: bool = False, **variables: str) -> RunningScript:
    return RunningScript(
        [SH, "-c", script],
        prefix="hook",
        seconds=seconds,
        environment={"PATH": os.environ["PATH"], **variables},
        folder=place,
        outlives=outlives,
    )


def ended(running: RunningScript) -> Outcome:
    found: Outcome = wait_until(running.poll, "the end of the program", seconds=20)
    return found


def pid_in(path: Path) -> int:
    """The process id that a program wrote there."""
    return int(wait_until(lambda: path.exists() and path.read_text().endswith("\n") and path.read_text(), f"{path}"))


def is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_its_exit_code_and_output_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ended(start(tmp_path, "echo one; echo two >&2; printf three; exit 3")).code == 3
    assert capfd.readouterr().out.splitlines() == ["[hook] one", "[hook] two", "[hook] three"]


def test_output_without_end_is_cut_and_the_program_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MOST_OUTPUT_BYTES", 100)
    assert ended(start(tmp_path, "yes 0123456789 | head -n 100000; exit 0")).is_well
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) < 15
    assert lines[-1] == "[hook] (the rest of the output is not kept)"


def test_it_sees_nothing_but_what_it_is_given(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert ended(start(tmp_path, "env; pwd", FACT="1")).is_well
    out = capfd.readouterr().out
    assert "hf_secret" not in out
    assert {line.partition("=")[0] for line in out.splitlines()} <= {
        "[hook] PATH", "[hook] FACT", "[hook] PWD", "[hook] LC_CTYPE", "[hook] SHLVL", "[hook] _", f"[hook] {tmp_path}",
    }  # fmt: skip


def test_after_its_time_the_whole_group_is_gone(tmp_path: Path) -> None:
    running = start(tmp_path, "sleep 600 & echo $! > pid; trap '' TERM; sleep 600", seconds=0.5)
    assert ended(running).ended == "timed_out"
    assert not is_running(pid_in(tmp_path / "pid"))


def test_what_a_program_leaves_running_ends_with_it(tmp_path: Path) -> None:
    assert ended(start(tmp_path, "sleep 600 & echo $! > pid")).is_well
    wait_until(lambda: not is_running(pid_in(tmp_path / "pid")), "the end of what was left")


def test_a_run_that_lets_go_ends_it(tmp_path: Path) -> None:
    running = start(tmp_path, "echo $$ > pid; sleep 600")
    pid = pid_in(tmp_path / "pid")
    running.let_go()
    assert ended(running).ended == "cut_off"
    assert not is_running(pid)


def test_a_program_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    running = RunningScript([str(tmp_path / "none")], prefix="hook", seconds=9, environment={}, folder=tmp_path)
    assert (ended(running).ended, ended(running).error) == ("not_started", "No such file or directory")


ENGINE = """
import sys, time
from pathlib import Path
from trainer_engine.hooks.process import RunningScript
RunningScript(["/bin/sh", "-c", sys.argv[1]], prefix="hook", seconds=float(sys.argv[3]), environment={},
              folder=Path.cwd(), outlives=sys.argv[2] == "1").poll()
time.sleep(600)
"""


def killed_engine(place: Path, script: str, *, outlives: bool, seconds: float = 60) -> int:
    """The process id that the program wrote, after the process that had started it was killed."""
    with (place / "log").open("wb") as log:
        arguments = [script, "1" if outlives else "0", str(seconds)]
        engine = subprocess.Popen([sys.executable, "-c", ENGINE, *arguments], cwd=place, stdout=log, stderr=log)
    pid = pid_in(place / "pid")
    engine.send_signal(signal.SIGKILL)
    engine.wait()
    return pid


def test_a_run_that_is_killed_takes_its_programs_with_it(tmp_path: Path) -> None:
    pid = killed_engine(tmp_path, "/bin/echo $$ > pid; /bin/sleep 600", outlives=False)
    wait_until(lambda: not is_running(pid), "the end of the program", seconds=20)


def test_a_program_in_the_background_outlives_the_run_but_not_its_time(tmp_path: Path) -> None:
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

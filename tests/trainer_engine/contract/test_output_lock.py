"""One run at a time writes into an output folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainer_engine.contract import output_lock
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.output_lock import LOCK_FILE, Holder, OutputInUse, claimed, holder_of

HOLD = """
import sys, time
from pathlib import Path
from trainer_engine.contract.output_lock import Holder, claimed
with claimed(Path(sys.argv[1]), Holder.here("job-1", "boats")):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_lock, "PATIENCE_SECONDS", 0.0)


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_run_is_refused_by_the_name_of_the_first(tmp_path: Path, patient: None) -> None:
    first = hold(tmp_path / "run")
    try:
        with pytest.raises(OutputInUse) as refused, claimed(tmp_path / "run", Holder.here("job-2", "")):
            pass
        assert f"the run job-1 of boats (process {first.pid} on " in refused.value.message
        assert refused.value.exit_code is ExitCode.CONFIGURATION and "output_dir" in refused.value.hint
        (tmp_path / "link").symlink_to(tmp_path / "run")
        for name in ("run", "link"):
            found = holder_of(tmp_path / name)
            assert found is not None and (found.job_id, found.pid) == ("job-1", first.pid)
    finally:
        first.kill()
        first.wait()


def test_the_lock_dies_with_its_process_however_that_ends(tmp_path: Path, patient: None) -> None:
    for number in (signal.SIGKILL, signal.SIGTERM):
        first = hold(tmp_path)
        first.send_signal(number)
        first.wait()
        assert holder_of(tmp_path) is None
        with claimed(tmp_path, Holder.here("job-2", "")) as has_lock:
            assert has_lock
    assert holder_of(tmp_path) is None


def test_programs_that_a_run_starts_do_not_keep_its_lock(tmp_path: Path, patient: None) -> None:
    with claimed(tmp_path, Holder.here("job-1", "")):
        child = subprocess.Popen(["sleep", "600"], close_fds=False)
    try:
        assert holder_of(tmp_path) is None
    finally:
        child.kill()
        child.wait()


def test_an_invalid_lock_file_gives_an_unknown_holder(tmp_path: Path, patient: None) -> None:
    named = '{"job_id": "a", "environment": "", "host": "", "since": "", "pid": %s}'
    odd_pids = [(named % pid).encode() for pid in ("Infinity", "NaN", "1e999", "null", "[]")]
    for content in (b"", b"[]", b"{", b'{"pid": "x"}', b'{"job_id": 1, "pid": 2}', b"[" * 4000, os.urandom(100), *odd_pids):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with (tmp_path / LOCK_FILE).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            assert holder_of(tmp_path) == Holder()
            with pytest.raises(OutputInUse, match="the run of another program"), claimed(tmp_path, Holder()):
                pass


def test_a_link_in_place_of_the_lock_file_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), claimed(tmp_path / "run", Holder.here("job", "")):
        pass
    assert (tmp_path / "precious").read_text() == "mine" and holder_of(tmp_path / "run") is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_used_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path, Holder.here("job", "")) as has_lock:
        assert not has_lock and holder_of(tmp_path) is None


def test_a_run_waits_for_one_that_is_just_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(output_lock.time, "sleep", lambda _: waiting.set())
    first = claimed(tmp_path, Holder.here("job-1", ""))
    first.__enter__()

    def end_first() -> None:
        waiting.wait(5)
        first.__exit__(None, None, None)

    ending = threading.Thread(target=end_first)
    ending.start()
    with claimed(tmp_path, Holder.here("job-2", "")) as has_lock:
        found = holder_of(tmp_path)
        assert has_lock and found is not None and found.job_id == "job-2"
    ending.join()


def test_a_full_disk_costs_the_name_of_the_holder_and_not_the_lock(tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with claimed(tmp_path, Holder.here("job-1", "")) as has_lock:
        assert has_lock and holder_of(tmp_path) == Holder()
        with pytest.raises(OutputInUse, match="another program"), claimed(tmp_path, Holder.here("job-2", "")):
            pass


def test_an_unexpected_error_of_the_lock_is_raised_and_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output"), claimed(tmp_path, Holder.here("job", "")):
        pass
    assert holder_of(tmp_path) is None and len(os.listdir("/proc/self/fd")) == before

"""One run at a time writes into an output folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
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
    for content in (b"", b"[]", b"{", b'{"pid": "x"}', json.dumps({"job_id": 1, "pid": 2}).encode(), os.urandom(100)):
        (tmp_path / LOCK_FILE).write_bytes(content)
        with (tmp_path / LOCK_FILE).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
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

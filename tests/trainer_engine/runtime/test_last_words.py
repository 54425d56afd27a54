"""A run writes its last events and exit.json on a full disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.small_disk import fill_up, small_file_system
from trainer_engine.contract.events import Notification, decode, utc_now
from trainer_engine.contract.run import RESERVED_BYTES, ExitReport, RunFolder
from trainer_engine.runtime.events import Journal
from trainer_engine.runtime.last_words import Reserve, leave_journal, leave_report

REPORT = ExitReport(exit_code=60, status="error", error_code="disk_full", message="The disk is full.", finished_at=utc_now())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with small_file_system(tmp_path / "disk", megabytes=3, files=12) as disk:
        yield RunFolder(disk / "run").create()


def test_report_and_last_events_fit_on_a_full_disk(folder: RunFolder) -> None:
    with Journal(folder.journal) as journal:
        reserve = Reserve(folder)
        fill_up(folder.path.parent)
        for number in range(100):
            journal.emit(Notification(code="test", message=f"{number} {'x' * 1000}"))
        assert journal.catch_up() is not None
        leave_journal(journal, reserve)
        leave_report(folder, REPORT, reserve)
        reserve.close()
    lines = folder.journal.read_bytes().splitlines()
    assert [decode(line).seq for line in lines] == list(range(100))
    assert ExitReport.read(folder) == REPORT
    assert not folder.reserve.exists()


def test_report_needs_no_new_file(folder: RunFolder) -> None:
    reserve = Reserve(folder)
    made: list[Path] = []
    with pytest.raises(OSError):
        while True:
            made.append(folder.path / f"small-{len(made)}")
            made[-1].touch()
    leave_report(folder, REPORT, reserve)
    assert ExitReport.read(folder) == REPORT


def test_run_on_a_full_disk_has_no_reserve(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    fill_up(folder.path.parent)
    reserve = Reserve(folder)
    assert not folder.reserve.exists()
    leave_report(folder, REPORT, reserve)
    assert "exit.json could not be written" in capsys.readouterr().err


def test_unused_reserve_is_removed_after_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    reserve = Reserve(folder)
    assert folder.reserve.stat().st_size == RESERVED_BYTES
    leave_report(folder, REPORT, reserve)
    reserve.close()
    assert ExitReport.read(folder) == REPORT and not folder.reserve.exists()


def test_full_log_does_not_end_the_process() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    program = """
import sys
from trainer_engine.runtime.last_words import patient_stream
sys.stdout, sys.stderr = patient_stream(sys.stdout), patient_stream(sys.stderr)
for stream in (sys.stdout, sys.stderr):
    print("x" * 100_000, file=stream, flush=True)
sys.exit(7)
"""
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, check=False).returncode == 7

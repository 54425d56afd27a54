"""What a run's last words are: a failure's reason once, and that nothing was left to train."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.tiny_run import run_in_this_process, train_here, write_job
from trainer_engine.contract.errors import ExitCode


def test_a_refusal_before_the_first_step_is_reported_once(tmp_path: Path) -> None:
    train_here(tmp_path, max_train_steps=1)
    refused = run_in_this_process(write_job(tmp_path, max_train_steps=2, seed=8))
    assert refused.code == ExitCode.CONFIGURATION
    report = refused.report()
    assert report is not None and "seed was 7 and is 8" in report.message
    lines = refused.folder.journal.read_text(encoding="utf-8").splitlines()
    (told,) = [line for line in lines if "seed was 7 and is 8" in line]
    assert '"error"' in told
    assert [entry.extra["stage"]["status"] for entry in refused.of_type("lifecycle.stage")][-1] == "failed"


def test_a_run_with_nothing_left_to_train_reports_that_at_its_end(tmp_path: Path) -> None:
    train_here(tmp_path, max_train_steps=1)
    again = run_in_this_process(write_job(tmp_path, max_train_steps=1)).report()
    assert again is not None and again.exit_code == ExitCode.COMPLETED
    assert "goes on from checkpoint-1: 0 of 1 steps left" in again.message and "max_train_steps" in again.message

"""Checks of the output folder and the checkpoints before a run starts."""

from __future__ import annotations

import pytest

from tests.training.conftest import Training
from tests.training.preflight.test_run import codes, examine


def test_rolling_checkpoints_and_limits_of_nothing_are_counted(training: Training) -> None:
    shape = {"checkpoint_step_interval": "5", "checkpoints_total_limit": "1"}
    disk = examine(training, **shape).understood["disk"]
    one = disk["checkpoint_bytes"]
    rolling = examine(training, **shape, checkpointing_rolling_steps="2").understood["disk"]
    assert rolling["checkpoints_bytes"] == disk["checkpoints_bytes"] + 2 * one, "the old one goes after the new one has come"
    negative, nothing = (
        examine(training, **{**shape, "checkpoints_total_limit": limit}).understood["disk"]["checkpoints_bytes"] for limit in ("-1", "0")
    )
    assert negative == nothing > disk["checkpoints_bytes"]


def test_the_copy_that_is_written_from_is_part_of_the_memory_text(training: Training) -> None:
    assert "more of the host's while a checkpoint is written" in examine(training).understood["memory"]["text"]


def test_a_disk_that_is_low_already_and_an_option_that_changes_nothing_are_reported(training: Training) -> None:
    report = examine(training, disk_low_threshold="900000T", checkpointing_use_tempdir="true")
    assert {"disk_is_low", "always_so"} <= codes(report) and not report.errors
    assert not {"disk_is_low", "always_so"} & codes(examine(training, disk_low_threshold="1K"))


@pytest.mark.parametrize(("action", "words"), [("stop", "would end"), ("wait", "would wait"), ("script", "would run disk_low_script")])
def test_validate_reports_what_a_low_disk_does_to_the_run(training: Training, action: str, words: str) -> None:
    script = training.home / "state/hooks/tidy.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    report = examine(training, disk_low_threshold="900000T", disk_low_action=action, disk_low_script="tidy.sh")
    (message,) = [problem.message for problem in report.problems if problem.code == "disk_is_low"]
    assert f"{words} before its first checkpoint" in message

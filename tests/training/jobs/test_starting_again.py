"""Starting into an output folder that is in use, or whose run is finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.checked_runs import checked, refusal
from tests.helpers.jobs import make_job
from tests.helpers.tiny_run import fork_tiny_run
from tests.training.api.test_reads import write_checkpoint
from tests.training.conftest import Training
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.output_lock import Holder, claimed
from training.models import Status


@pytest.mark.slow
def test_a_second_engine_ends_as_a_configuration_that_is_wrong(tmp_path: Path) -> None:
    first = fork_tiny_run(tmp_path, "first", max_train_steps=1000)
    try:
        first.wait_for("training.progress")
        assert "the run first" in refusal(checked(tmp_path, max_train_steps=1000)).message
        second = fork_tiny_run(tmp_path, "second", max_train_steps=1000)
        assert second.wait() == ExitCode.CONFIGURATION
        report = second.report()
        assert report is not None and report.error_code == "output_in_use"
        assert f"the run first (process {first.process.pid} on " in report.message
        assert first.process.poll() is None and first.of_type("error") == []
    finally:
        first.process.kill()
        first.process.wait()
    assert not checked(tmp_path, max_train_steps=1000).errors


def test_validate_and_start_refuse_a_folder_that_another_program_uses(training: Training) -> None:
    with claimed(training.home / "output/run", Holder.here("another-run", "")):
        for call in ("/validate", "/start"):
            answer = training.post(call, training.form)
            assert answer.status_code == 422
            (problem,) = json.loads(answer.content)["problems"]
            assert (problem["option"], problem["code"]) == ("output_dir", "output_in_use") and "another-run" in problem["message"]
    assert training.post("/validate", training.form).status_code == 200


def test_a_run_that_waits_for_one_of_this_server_is_accepted_with_a_note(training: Training) -> None:
    output_dir = training.home / "output/run"
    job = make_job(training.home, Status.RUNNING, output_dir=str(output_dir))
    with claimed(output_dir, Holder.here(str(job.pk), "")):
        notes = training.post("/validate", training.form).json()["notes"]
        assert [note["code"] for note in notes if note["option"] == "output_dir"] == ["waits_for_run"]
        assert training.start()["status"] == "queued"


def test_a_start_that_has_nothing_left_to_train_warns(training: Training) -> None:
    folder = write_checkpoint(training.home / "output/run", 20)
    (folder / "training_state.json").write_text("{}")
    (folder / "samples.json").write_text("{}")
    form = {**training.form, "--i_know_what_i_am_doing": "true"}
    answer = training.post("/start", form).json()
    assert "already_finished" in [warning["code"] for warning in answer["warnings"]]
    page = training.post("/start", form, accept="text/html").content.decode()
    assert "continues from checkpoint-20: 0 of 20 steps left" in page
    assert training.start(**{"--resume_from_checkpoint": ""})["warnings"] == []

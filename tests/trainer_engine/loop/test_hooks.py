"""A real run with real programs: they are told of its checkpoints, they validate for it, and they cannot hurt it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_run import TinyRun, fork_run, run_in_this_process, write_job
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.hooks import EVERYTHING, NOTHING, HookRule
from trainer_engine.contract.run import JobSpec

TELL = """#!/bin/sh
printf '%s %s %s %s %s %s\\n' "$SIMPLETUNER_HOOK" "$@" >> "$SIMPLETUNER_OUTPUT_DIR/told"
echo "spoken by $SIMPLETUNER_HOOK"
"""

AWAY = """#!/bin/sh
mv "$SIMPLETUNER_OUTPUT_DIR" ../moved
touch "$SIMPLETUNER_OUTPUT_DIR"
sleep 2
touch done
"""
"""Takes the output folder away, so that the next checkpoint cannot be saved."""


def program(place: Path, name: str, text: str) -> Path:
    path = place / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def run_with(place: Path, rule: HookRule, **options: Any) -> TinyRun:
    folder = write_job(
        place,
        max_train_steps=4,
        checkpoint_step_interval=2,
        validation_step_interval=1,
        validation_disable=False,
        validation_prompt="a stone",
        validation_disable_unconditional=True,
        validation_num_inference_steps=1,
        validation_resolution="64x64",
        validation_method="external-script",
        **options,
    )
    JobSpec.read(folder).model_copy(update={"scripts": rule}).write(folder)
    run = fork_run(folder, HF_TOKEN="hf_canary")
    assert run.wait() == 0, run.log()
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Validated by a program; a second program fails after each checkpoint, a third is told of uploads."""
    place = tmp_path_factory.mktemp("scripts")
    emit = program(place, "tell.sh", TELL)
    where = "{global_step} {local_checkpoint_path} {remote_checkpoint_path}-"
    return run_with(
        place,
        EVERYTHING,
        validation_external_script=f"{emit} {where} {{validation_guidance}} x",
        post_checkpoint_script=str(program(place, "fail.sh", "#!/bin/sh\nenv\nexit 3\n")),
        post_upload_script=f"{emit} {where} {{model_family}} {{model_type}}",
    )


def told(run: TinyRun, option: str) -> list[list[str]]:
    lines = [line.split(" ") for line in (run.output_dir / "told").read_text().splitlines()]
    return [words[1:] for words in lines if words[0] == option]


def test_a_program_validates_in_place_of_the_pipeline(run: TinyRun) -> None:
    checkpoints = [str(run.output_dir / f"checkpoint-{step}") for step in (2, 2, 4)]
    rest = ["-", "4.0", "x"]  # the guidance of the family
    assert told(run, "validation_external_script") == [
        ["2", checkpoints[0], *rest],
        ["3", checkpoints[1], *rest],
        ["4", checkpoints[2], *rest],
    ]
    kinds = {entry.data["validation_type"] for entry in run.of_type("validation.image")}
    assert kinds == {"base_model"}, "the base model is drawn by the pipeline, and nothing else is"


def test_external_validation_before_the_first_checkpoint_is_skipped_with_a_warning(run: TinyRun) -> None:
    found = [entry for entry in run.of_type("error") if entry.data["code"] == "no_checkpoint"]
    assert [entry.data["details"]["step"] for entry in found] == [1]
    assert found[0].severity == "warning" and found[0].data["hint"]


def test_hooks_run_once_for_each_checkpoint_and_the_result(run: TinyRun) -> None:
    paths = [run.output_dir / name for name in ("checkpoint-2", "checkpoint-4", "pipeline")]
    assert sorted(told(run, "post_upload_script")) == sorted(
        [step, str(path), "-", "pixart_sigma", "full"] for step, path in zip(("2", "4", "4"), paths, strict=True)
    )


def test_a_program_that_fails_is_a_warning_of_the_run(run: TinyRun) -> None:
    failed = [entry for entry in run.of_type("error") if entry.data["code"] == "script_failed"]
    assert [entry.data["details"]["step"] for entry in failed] == [2, 4]
    assert {entry.severity for entry in failed} == {"warning"}
    assert all(entry.data["details"] | {"hook": "post_checkpoint_script", "exit_code": 3} == entry.data["details"] for entry in failed)


def test_the_log_has_the_output_of_hooks_and_no_secret(run: TinyRun) -> None:
    assert "[validation_external_script] spoken by validation_external_script" in run.log()
    assert "[post_checkpoint_script] SIMPLETUNER_JOB_ID=run" in run.log()
    assert "hf_canary" not in run.log() + json.dumps([entry.data for entry in run.entries()])


def test_a_program_that_hangs_or_is_not_allowed_ends_in_a_warning(tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    hang = program(hooks, "hang.sh", "#!/bin/sh\nsleep 600\n")
    run = run_with(
        tmp_path,
        HookRule(folders=(str(hooks),)),
        disable_benchmark=True,
        validation_external_script=str(program(tmp_path, "elsewhere.sh", "#!/bin/sh\n")),
        post_checkpoint_script=str(hang),
        script_timeout=1,
    )
    codes = [entry.data["code"] for entry in run.of_type("error")]
    assert codes.count("script_not_allowed") == 4
    assert codes.count("script_timed_out") == 2
    waited = [entry.extra["stage"] for entry in run.of_type("lifecycle.stage") if entry.extra["stage"]["key"] == "scripts"]
    assert waited[0]["status"] == "running" and "post_checkpoint_script of checkpoint-" in waited[0]["label"]
    assert waited[-1]["status"] == "completed"


@pytest.mark.slow
def test_a_run_that_an_error_ends_lets_the_program_of_its_last_checkpoint_end(tmp_path: Path) -> None:
    away = program(tmp_path, "away.sh", AWAY)
    folder = write_job(tmp_path, max_train_steps=1_000_000, checkpoint_step_interval=50, post_checkpoint_script=str(away))
    JobSpec.read(folder).model_copy(update={"scripts": EVERYTHING}).write(folder)
    run = run_in_this_process(folder)
    assert run.code == ExitCode.FAILURE, run.log()
    assert (tmp_path / "moved/done").exists()
    notes = [entry.data["code"] for entry in run.of_type("notification")]
    assert "script_completed" in notes and "script_cut_off" not in notes


def test_a_job_without_a_rule_for_programs_runs_none() -> None:
    assert JobSpec(job_id="x", options={}, datasets=[]).scripts == NOTHING

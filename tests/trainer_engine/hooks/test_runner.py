"""The hook runner starts hooks, reports how they end, and waits for them at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.served_runs import wait_until
from tests.helpers.tiny_run import Listener
from trainer_engine.config.parse import parse_options
from trainer_engine.contract import commands
from trainer_engine.contract.commands import Command
from trainer_engine.contract.events import ErrorEvent, Notification, Severity
from trainer_engine.contract.hooks import EVERYTHING, HookRule
from trainer_engine.contract.run import RunFolder
from trainer_engine.hooks import runner as module
from trainer_engine.hooks.runner import HookContext, HookRunner
from trainer_engine.runtime.control import ControlRequests

RECORD = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word" >> calls; done
printf '%s %s\\n' "$SIMPLETUNER_HOOK" "$SIMPLETUNER_GLOBAL_STEP" >> calls
"""


class Place:
    """A run folder, its hooks, and the events of its run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = path / "output"
        self.folder = RunFolder(path / "run").create()
        self.events = Listener()
        self.opened: list[HookRunner] = []

    def program(self, text: str, name: str = "hook.sh") -> Path:
        path = self.path / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def hooks(self, rule: HookRule = EVERYTHING, **options: Any) -> HookRunner:
        values = {
            "model_family": "pixart_sigma",
            "model_type": "lora",
            "output_dir": str(self.output),
            "data_backend_config": "data.json",
            "max_train_steps": 4,
            "num_train_epochs": 0,
            "tracker_run_name": "a run; with 'words'",
            **options,
        }
        found = HookContext(rule, "job-1").open(parse_options(values), self.events, ControlRequests(self.folder))
        self.opened.append(found)
        return found

    def checkpoint(self, step: int) -> Path:
        folder = self.output / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({}))
        return folder

    def calls(self) -> list[str]:
        path = self.output / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def warnings(self) -> list[str]:
        assert all(event.severity is Severity.WARNING and "raining continues" in event.message for event in self.events.of(ErrorEvent))
        return [event.code for event in self.events.of(ErrorEvent)]

    def notes(self) -> list[str]:
        return [event.code for event in self.events.of(Notification)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    for one in found.opened:
        one.close()


def test_checkpoint_hook_gets_each_placeholder_as_one_argument(place: Place) -> None:
    arguments = "{local_checkpoint_path} '{tracker_run_name} x' {lora_type} e{huggingface_path}"
    hooks = place.hooks(post_checkpoint_script=f"{place.program(RECORD)} {arguments}")
    hooks.after_checkpoint(place.checkpoint(2), 2)
    hooks.wait()
    assert place.calls() == [str(place.output / "checkpoint-2"), "a run; with 'words' x", "standard", "e", "post_checkpoint_script 2"]
    assert place.notes() == ["script_completed"]
    assert place.events.of(Notification)[0].details["exit_code"] == 0


def test_upload_hook_gets_the_address(place: Place) -> None:
    hooks = place.hooks(post_upload_script=f"{place.program(RECORD)} {{remote_checkpoint_path}} {{global_step}}")
    hooks.after_upload("s3://bucket/run/checkpoint-2", place.checkpoint(2), 2)
    hooks.after_upload("", place.output / "checkpoint-2", 2)
    hooks.wait()
    assert sorted(place.calls()) == sorted(["s3://bucket/run/checkpoint-2", "2", "post_upload_script 2", "", "2", "post_upload_script 2"])


def test_runner_without_hooks_starts_nothing(place: Place) -> None:
    hooks = place.hooks()
    hooks.after_checkpoint(place.checkpoint(1), 1)
    hooks.after_upload("s3://x", place.output, 1)
    assert not hooks.unfinished and not place.events.events


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        ("#!/bin/sh\nexit 7\n", "script_failed", "exit code 7"),
        ("#!/bin/sh\nkill -9 $$\n", "script_failed", "signal 9"),
        ("#!/bin/sh\nsleep 600\n", "script_timed_out", "script_timeout=1 s"),
        ("#!/no/such/interpreter\n", "script_not_started", "No such file"),
        ("not a program", "script_not_started", "xec format error"),
    ],
)
def test_failed_hook_is_a_warning(place: Place, text: str, code: str, reason: str) -> None:
    hooks = place.hooks(post_checkpoint_script=str(place.program(text)), script_timeout=1)
    hooks.after_checkpoint(place.checkpoint(3), 3)
    hooks.wait()
    assert place.warnings() == [code]
    event = place.events.of(ErrorEvent)[0]
    assert reason in event.message and "checkpoint-3" in event.message and event.hint


def test_runner_checks_the_rule_before_each_start(place: Place, tmp_path: Path) -> None:
    allowed = tmp_path / "hooks"
    allowed.mkdir()
    program = place.program(RECORD, "hooks/hook.sh")
    hooks = place.hooks(HookRule(folders=(str(allowed),)), post_checkpoint_script=f"{program} once")
    hooks.after_checkpoint(place.checkpoint(1), 1)
    hooks.wait()
    program.rename(tmp_path / "elsewhere.sh")
    program.symlink_to(tmp_path / "elsewhere.sh")
    hooks.after_checkpoint(place.checkpoint(2), 2)
    program.unlink()
    hooks.after_checkpoint(place.checkpoint(3), 3)
    hooks.wait()
    assert place.calls() == ["once", "post_checkpoint_script 1"]
    assert place.warnings() == ["script_not_allowed", "script_not_found"]


def test_runner_starts_two_hooks_at_once_and_queues_the_others(place: Place) -> None:
    program = place.program("#!/bin/sh\necho $1 >> began; while [ ! -e go ]; do sleep 0.02; done\n")
    hooks = place.hooks(post_checkpoint_script=f"{program} {{global_step}}")
    for step in range(1, 6):
        hooks.after_checkpoint(place.checkpoint(step), step)
    began = place.output / "began"
    wait_until(lambda: began.exists() and len(began.read_text().split()) == 2, "two that run")
    hooks.look()
    assert len(hooks.unfinished) == 5
    (place.output / "go").touch()
    hooks.wait()
    assert sorted(began.read_text().split()) == ["1", "2", "3", "4", "5"]


def test_external_validation_waits_for_its_hook_and_warns(place: Place) -> None:
    external = {"validation_method": "external-script", "script_timeout": 2}
    program = place.program(RECORD + "exit $1\n")
    template = f"{program} 0 {{local_checkpoint_path}} {{remote_checkpoint_path}} {{validation_num_inference_steps}}"
    hooks = place.hooks(**external, validation_external_script=template)
    hooks.validate(4)
    assert place.warnings() == ["no_checkpoint"] and not place.calls()
    place.checkpoint(2)
    hooks.validate(5)
    assert place.calls() == ["0", str(place.output / "checkpoint-2"), "", "30", "validation_external_script 5"]
    newer = place.checkpoint(6)
    hooks.after_checkpoint(newer, 6)
    hooks.validate(6)
    assert str(newer) in place.calls()
    assert place.warnings() == ["no_checkpoint"]
    place.hooks(**external, validation_external_script=f"{program} 3").validate(7)
    assert place.warnings() == ["no_checkpoint", "script_failed"]


def test_external_validation_without_a_checkpoint_in_its_template_needs_none(place: Place) -> None:
    place.hooks(validation_method="external-script", validation_external_script=f"{place.program(RECORD)} x").validate(1)
    assert place.calls() == ["x", "validation_external_script 1"] and not place.warnings()


def test_validation_in_the_background_does_not_wait(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IN_BACKGROUND", 2)
    program = place.program("#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.02; done\nexit 5\n")
    background = {"validation_method": "external-script", "validation_external_background": True}
    hooks = place.hooks(**background, validation_external_script=str(program), script_timeout=20)
    for step in (1, 2, 3):
        hooks.validate(step)
    assert place.warnings() == ["too_many_scripts"]
    assert not hooks.unfinished
    (place.output / "go").touch()

    def both() -> bool:
        hooks.look()
        return place.warnings() == ["too_many_scripts", "script_failed", "script_failed"]

    wait_until(both, "their exit codes")


def test_stop_ends_the_hook_that_validation_waits_for(place: Place) -> None:
    program = place.program("#!/bin/sh\nsleep 600\n")
    hooks = place.hooks(post_checkpoint_script=str(program), validation_method="external-script", validation_external_script=str(program))
    for step in (1, 2, 3):
        hooks.after_checkpoint(place.checkpoint(step), step)
    commands.request(place.folder, Command.STOP)
    hooks.validate(3)
    assert place.notes() == ["script_cut_off"]


def test_stopped_run_gives_its_hooks_some_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    commands.request(place.folder, Command.STOP)
    hooks = place.hooks(post_checkpoint_script=f"{place.program(RECORD)} quick")
    hooks.after_checkpoint(place.checkpoint(1), 1)
    hooks.wait()
    assert place.calls()[0] == "quick" and place.notes() == ["script_completed"]
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    commands.request(place.folder, Command.STOP)
    slow = place.hooks(post_checkpoint_script=str(place.program("#!/bin/sh\nsleep 600\n", "slow.sh")))
    for step in (2, 3, 4):
        slow.after_checkpoint(place.checkpoint(step), step)
    slow.wait()
    assert place.notes()[1:] == ["scripts_left_out", "script_cut_off", "script_cut_off"]


def test_failed_run_gives_its_hooks_some_time_unless_a_stop_is_requested(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = place.hooks(post_checkpoint_script=f"{place.program(RECORD)} quick")
    quick.after_checkpoint(place.checkpoint(1), 1)
    quick.wait_a_little()
    assert place.calls()[0] == "quick" and place.notes() == ["script_completed"]
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    slow = place.hooks(post_checkpoint_script=str(place.program("#!/bin/sh\nsleep 600\n", "slow.sh")))
    slow.after_checkpoint(place.checkpoint(2), 2)
    slow.wait_a_little()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 600)
    slow.after_checkpoint(place.checkpoint(3), 3)
    commands.request(place.folder, Command.STOP)
    slow.wait_a_little()
    assert place.notes()[1:] == ["script_cut_off", "script_cut_off"]


def test_make_room_waits_for_its_hook_and_a_stop_leaves_it_some_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    template = f"{place.program(RECORD)} {{local_checkpoint_path}}-{{global_step}}"
    hooks = place.hooks(disk_low_action="script", disk_low_script=template)
    hooks.make_room(6)
    assert place.calls() == ["-6", "disk_low_script 6"]
    newest = place.checkpoint(5)
    commands.request(place.folder, Command.STOP)
    hooks.make_room(7)
    assert place.calls()[2] == f"{newest}-7" and place.notes() == ["script_completed"] * 2
    assert "disk_low_script of step 7 completed" in place.events.of(Notification)[1].message
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    hanging = place.hooks(disk_low_action="script", disk_low_script=str(place.program("#!/bin/sh\nsleep 600\n", "hang.sh")))
    commands.request(place.folder, Command.STOP)
    hanging.make_room(8)
    assert place.notes()[2:] == ["script_cut_off"]


def test_hook_environment_has_call_variables_and_those_the_operator_lists(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret")
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_listed")
    rule = HookRule(anything=True, variables=("REPLICATE_API_TOKEN", "NOT_SET"))
    hooks = place.hooks(rule, post_checkpoint_script="/usr/bin/env", pretrained_model_name_or_path="/models/base")
    hooks.after_checkpoint(place.checkpoint(2), 2)
    hooks.wait()
    lines = capfd.readouterr().out.splitlines()
    seen = dict(line.removeprefix("[post_checkpoint_script] ").split("=", 1) for line in lines)
    assert not {"HF_TOKEN", "WANDB_API_KEY", "NOT_SET", "PYTHONPATH"} & set(seen)
    assert seen["REPLICATE_API_TOKEN"] == "r8_listed"
    facts = {name: value for name, value in seen.items() if name.startswith("SIMPLETUNER_")}
    assert facts == {
        "SIMPLETUNER_HOOK": "post_checkpoint_script",
        "SIMPLETUNER_GLOBAL_STEP": "2",
        "SIMPLETUNER_CHECKPOINT": str(place.output / "checkpoint-2"),
        "SIMPLETUNER_OUTPUT_DIR": str(place.output),
        "SIMPLETUNER_JOB_ID": "job-1",
        "SIMPLETUNER_BASE_MODEL": "/models/base",
    }

"""What a run does with its programs: told of as they end, waited for at the end, and never in the way."""

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
from trainer_engine.contract.hooks import EVERYTHING, ScriptRule
from trainer_engine.contract.run import RunFolder
from trainer_engine.hooks import runner as module
from trainer_engine.hooks.context import ScriptContext
from trainer_engine.hooks.runner import Scripts
from trainer_engine.runtime.control import ControlRequests

TELL = """#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word" >> told; done
printf '%s %s\\n' "$SIMPLETUNER_HOOK" "$SIMPLETUNER_GLOBAL_STEP" >> told
"""


class Place:
    """A run's folder, its programs, and what was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.output = path / "output"
        self.folder = RunFolder(path / "run").create()
        self.heard = Listener()
        self.opened: list[Scripts] = []

    def program(self, text: str, name: str = "hook.sh") -> Path:
        path = self.path / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def scripts(self, rule: ScriptRule = EVERYTHING, **options: Any) -> Scripts:
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
        found = ScriptContext(rule, "job-1").open(parse_options(values), self.heard, ControlRequests(self.folder))
        self.opened.append(found)
        return found

    def checkpoint(self, step: int) -> Path:
        folder = self.output / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({}))
        return folder

    def told(self) -> list[str]:
        path = self.output / "told"
        return path.read_text().splitlines() if path.exists() else []

    def warnings(self) -> list[str]:
        assert all(event.severity is Severity.WARNING and "raining goes on" in event.message for event in self.heard.of(ErrorEvent))
        return [event.code for event in self.heard.of(ErrorEvent)]

    def notes(self) -> list[str]:
        return [event.code for event in self.heard.of(Notification)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    for one in found.opened:
        one.close()


def test_a_checkpoint_is_told_with_its_placeholders_one_argument_each(place: Place) -> None:
    arguments = "{local_checkpoint_path} '{tracker_run_name} x' {lora_type} e{huggingface_path}"
    scripts = place.scripts(post_checkpoint_script=f"{place.program(TELL)} {arguments}")
    scripts.after_checkpoint(place.checkpoint(2), 2)
    scripts.wait()
    assert place.told() == [str(place.output / "checkpoint-2"), "a run; with 'words' x", "standard", "e", "post_checkpoint_script 2"]
    assert place.notes() == ["script_completed"]
    assert place.heard.of(Notification)[0].details["exit_code"] == 0


def test_an_upload_is_told_with_its_address(place: Place) -> None:
    scripts = place.scripts(post_upload_script=f"{place.program(TELL)} {{remote_checkpoint_path}} {{global_step}}")
    scripts.after_upload("s3://bucket/run/checkpoint-2", place.checkpoint(2), 2)
    scripts.after_upload("", place.output / "checkpoint-2", 2)
    scripts.wait()
    assert sorted(place.told()) == sorted(["s3://bucket/run/checkpoint-2", "2", "post_upload_script 2", "", "2", "post_upload_script 2"])


def test_without_scripts_nothing_is_started(place: Place) -> None:
    scripts = place.scripts()
    scripts.after_checkpoint(place.checkpoint(1), 1)
    scripts.after_upload("s3://x", place.output, 1)
    assert not scripts.unfinished and not place.heard.events


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("#!/bin/sh\nexit 7\n", "script_failed", "exit code 7"),
        ("#!/bin/sh\nkill -9 $$\n", "script_failed", "signal 9"),
        ("#!/bin/sh\nsleep 600\n", "script_timed_out", "script_timeout=1 s"),
        ("#!/no/such/interpreter\n", "script_not_started", "No such file"),
        ("not a program", "script_not_started", "xec format error"),
    ],
)
def test_a_program_that_fails_is_a_warning(place: Place, text: str, code: str, said: str) -> None:
    scripts = place.scripts(post_checkpoint_script=str(place.program(text)), script_timeout=1)
    scripts.after_checkpoint(place.checkpoint(3), 3)
    scripts.wait()
    assert place.warnings() == [code]
    event = place.heard.of(ErrorEvent)[0]
    assert said in event.message and "checkpoint-3" in event.message and event.hint


def test_the_rule_is_asked_again_before_each_start(place: Place, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    program = place.program(TELL, "hooks/hook.sh")
    scripts = place.scripts(ScriptRule(folders=(str(hooks),)), post_checkpoint_script=f"{program} once")
    scripts.after_checkpoint(place.checkpoint(1), 1)
    scripts.wait()
    program.rename(tmp_path / "elsewhere.sh")
    program.symlink_to(tmp_path / "elsewhere.sh")
    scripts.after_checkpoint(place.checkpoint(2), 2)
    program.unlink()
    scripts.after_checkpoint(place.checkpoint(3), 3)
    scripts.wait()
    assert place.told() == ["once", "post_checkpoint_script 1"]
    assert place.warnings() == ["script_not_allowed", "script_not_found"]


def test_only_two_run_at_once_and_the_others_get_their_turn(place: Place) -> None:
    program = place.program("#!/bin/sh\necho $1 >> began; while [ ! -e go ]; do sleep 0.02; done\n")
    scripts = place.scripts(post_checkpoint_script=f"{program} {{global_step}}")
    for step in range(1, 6):
        scripts.after_checkpoint(place.checkpoint(step), step)
    began = place.output / "began"
    wait_until(lambda: began.exists() and len(began.read_text().split()) == 2, "two that run")
    scripts.look()
    assert len(scripts.unfinished) == 5
    (place.output / "go").touch()
    scripts.wait()
    assert sorted(began.read_text().split()) == ["1", "2", "3", "4", "5"]


def test_external_validation_waits_and_warns(place: Place) -> None:
    external = {"validation_method": "external-script", "script_timeout": 2}
    program = place.program(TELL + "exit $1\n")
    template = f"{program} 0 {{local_checkpoint_path}} {{remote_checkpoint_path}} {{validation_num_inference_steps}}"
    scripts = place.scripts(**external, validation_external_script=template)
    scripts.validate(4)
    assert place.warnings() == ["no_checkpoint"] and not place.told()
    place.checkpoint(2)
    scripts.validate(5)
    assert place.told() == ["0", str(place.output / "checkpoint-2"), "", "30", "validation_external_script 5"]
    newer = place.checkpoint(6)
    scripts.after_checkpoint(newer, 6)
    scripts.validate(6)
    assert str(newer) in place.told()
    assert place.warnings() == ["no_checkpoint"]
    place.scripts(**external, validation_external_script=f"{program} 3").validate(7)
    assert place.warnings() == ["no_checkpoint", "script_failed"]


def test_external_validation_without_a_checkpoint_in_its_template_needs_none(place: Place) -> None:
    place.scripts(validation_method="external-script", validation_external_script=f"{place.program(TELL)} x").validate(1)
    assert place.told() == ["x", "validation_external_script 1"] and not place.warnings()


def test_validation_in_the_background_waits_for_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IN_BACKGROUND", 2)
    program = place.program("#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.02; done\nexit 5\n")
    background = {"validation_method": "external-script", "validation_external_background": True}
    scripts = place.scripts(**background, validation_external_script=str(program), script_timeout=20)
    for step in (1, 2, 3):
        scripts.validate(step)
    assert place.warnings() == ["too_many_scripts"]
    assert not scripts.unfinished
    (place.output / "go").touch()

    def both() -> bool:
        scripts.look()
        return place.warnings() == ["too_many_scripts", "script_failed", "script_failed"]

    wait_until(both, "their exit codes")


def test_a_stop_ends_what_is_waited_for(place: Place) -> None:
    program = place.program("#!/bin/sh\nsleep 600\n")
    scripts = place.scripts(
        post_checkpoint_script=str(program), validation_method="external-script", validation_external_script=str(program)
    )
    for step in (1, 2, 3):
        scripts.after_checkpoint(place.checkpoint(step), step)
    commands.request(place.folder, Command.STOP)
    scripts.validate(3)
    assert place.notes() == ["script_cut_off"]


def test_a_run_that_was_stopped_gives_its_programs_a_little_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    commands.request(place.folder, Command.STOP)
    scripts = place.scripts(post_checkpoint_script=f"{place.program(TELL)} quick")
    scripts.after_checkpoint(place.checkpoint(1), 1)
    scripts.wait()
    assert place.told()[0] == "quick" and place.notes() == ["script_completed"]
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    commands.request(place.folder, Command.STOP)
    slow = place.scripts(post_checkpoint_script=str(place.program("#!/bin/sh\nsleep 600\n", "slow.sh")))
    for step in (2, 3, 4):
        slow.after_checkpoint(place.checkpoint(step), step)
    slow.wait()
    assert place.notes()[1:] == ["scripts_left_out", "script_cut_off", "script_cut_off"]


def test_a_run_that_an_error_ends_gives_its_programs_a_little_time_unless_it_is_asked_to_stop(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = place.scripts(post_checkpoint_script=f"{place.program(TELL)} quick")
    quick.after_checkpoint(place.checkpoint(1), 1)
    quick.wait_a_little()
    assert place.told()[0] == "quick" and place.notes() == ["script_completed"]
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    slow = place.scripts(post_checkpoint_script=str(place.program("#!/bin/sh\nsleep 600\n", "slow.sh")))
    slow.after_checkpoint(place.checkpoint(2), 2)
    slow.wait_a_little()
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 600)
    slow.after_checkpoint(place.checkpoint(3), 3)
    commands.request(place.folder, Command.STOP)
    slow.wait_a_little()
    assert place.notes()[1:] == ["script_cut_off", "script_cut_off"]


def test_a_program_that_makes_room_is_waited_for_and_a_stop_leaves_it_a_little_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    template = f"{place.program(TELL)} {{local_checkpoint_path}}-{{global_step}}"
    scripts = place.scripts(disk_low_action="script", disk_low_script=template)
    scripts.make_room(6)
    assert place.told() == ["-6", "disk_low_script 6"]
    newest = place.checkpoint(5)
    commands.request(place.folder, Command.STOP)
    scripts.make_room(7)
    assert place.told()[2] == f"{newest}-7" and place.notes() == ["script_completed"] * 2
    assert "disk_low_script of step 7 ended well" in place.heard.of(Notification)[1].message
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    hanging = place.scripts(disk_low_action="script", disk_low_script=str(place.program("#!/bin/sh\nsleep 600\n", "hang.sh")))
    commands.request(place.folder, Command.STOP)
    hanging.make_room(8)
    assert place.notes()[2:] == ["script_cut_off"]


def test_its_environment_holds_facts_and_what_the_operator_lists(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret")
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_listed")
    rule = ScriptRule(anything=True, variables=("REPLICATE_API_TOKEN", "NOT_SET"))
    scripts = place.scripts(rule, post_checkpoint_script="/usr/bin/env", pretrained_model_name_or_path="/models/base")
    scripts.after_checkpoint(place.checkpoint(2), 2)
    scripts.wait()
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

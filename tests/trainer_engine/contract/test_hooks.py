"""Templates of commands become arguments, whatever the values hold; and only listed programs may run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer_engine.config.test_options import COMPLETE, problems_of
from trainer_engine.config.options.hooks import ONLY_WITH, SCRIPT_OPTIONS
from trainer_engine.config.options.placeholders import CONTEXT, known_placeholders, values_of
from trainer_engine.config.parse import check_options, parse_options
from trainer_engine.contract.errors import Level
from trainer_engine.contract.hooks import EVERYTHING, NOTHING, ScriptRule, Template, start_of_command
from trainer_engine.runtime.environment import SEEN_BY_SCRIPTS

TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))


def parse(text: str) -> Template:
    return Template.parse(text, known_placeholders())


def filled(text: str, **values: Any) -> list[str]:
    options = parse_options({**COMPLETE, **{f"--{name}": value for name, value in values.items()}})
    return parse(text).fill(values_of(options, step=7, local="/out/checkpoint-7"))


@given(TEXT)
def test_a_value_never_leaves_its_argument(value: str) -> None:
    template = parse("/hooks/tell.sh --prompt={validation_prompt} '{validation_prompt}' last")
    assert template.fill({"validation_prompt": value}) == ["/hooks/tell.sh", f"--prompt={value}", value, "last"]


@given(st.lists(TEXT, min_size=1))
def test_a_template_is_the_same_after_it_was_written_and_read(arguments: list[str]) -> None:
    program, *rest = [argument.replace("{", "{{").replace("}", "}}") for argument in arguments]
    template = Template((program.strip() or "run", *rest))
    assert parse(str(template)) == template


def test_nothing_is_expanded_as_a_shell_would() -> None:
    assert filled("/hooks/a $HOME ~/x *.png `id` $(id) ;reboot # no") == [
        "/hooks/a", "$HOME", "~/x", "*.png", "`id`", "$(id)", ";reboot", "#", "no",
    ]  # fmt: skip


def test_every_placeholder_has_a_text() -> None:
    text = "/hooks/a " + " ".join(f"{name}={{{name}}}" for name in known_placeholders())
    got = dict(argument.split("=", 1) for argument in filled(text, model_family="flux", model_type="lora", tracker_run_name="my run")[1:])
    assert got["local_checkpoint_path"] == "/out/checkpoint-7"
    assert got["remote_checkpoint_path"] == got["huggingface_path"] == got["validation_noise_scheduler"] == ""
    assert (got["global_step"], got["model_family"], got["model_type"], got["lora_type"]) == ("7", "flux", "lora", "standard")
    assert (got["tracker_run_name"], got["tracker_project_name"]) == ("my run", "simpletuner")
    assert got["validation_num_inference_steps"] == "28"  # the family's own
    assert got["validation_step_interval"] == got["validation_steps"] == "100"


def test_false_and_zero_stay_what_they_are() -> None:
    text = "/hooks/a {validation_disable} {validation_lycoris_strength} {validation_preview}"
    assert filled(text, validation_lycoris_strength=0, validation_preview=True) == ["/hooks/a", "false", "0.0", "true"]


def test_a_run_without_an_adapter_has_no_kind_of_one() -> None:
    assert filled("/hooks/a {model_type} {lora_type}") == ["/hooks/a", "full", ""]


def test_doubled_braces_are_braces() -> None:
    assert filled("/hooks/{{a}} '{{\"step\": {global_step}}}'") == ["/hooks/{a}", '{"step": 7}']


@pytest.mark.parametrize("name", SCRIPT_OPTIONS)
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("/hooks/a {local_chekpoint_path}", "unknown_placeholder"),
        ("/hooks/a {0}", "unknown_placeholder"),
        ("/hooks/a {}", "unknown_placeholder"),
        ("/hooks/a {global_step.real}", "unknown_placeholder"),
        ("/hooks/a {global_step!r}", "unknown_placeholder"),
        ("/hooks/a {global_step:>9}", "unknown_placeholder"),
        ("/hooks/a { global_step }", "unbalanced_braces"),
        ("/hooks/a {global_step", "unbalanced_braces"),
        ("/hooks/a 'it", "unbalanced_quotes"),
        ("/hooks/a \\", "unbalanced_quotes"),
        ("''", "empty_command"),
        ("{local_checkpoint_path}/run.sh", "program_is_a_placeholder"),
    ],
)
def test_a_template_that_cannot_be_meant_is_told(name: str, text: str, code: str) -> None:
    chosen = dict([ONLY_WITH[name]]) if name in ONLY_WITH else {}
    assert problems_of(**{name: text}, **chosen) == [(name, code)]


def test_a_placeholder_that_was_mistyped_is_guessed() -> None:
    _, problems = check_options({**COMPLETE, "post_upload_script": "/hooks/a {remote_checkpoint}"})
    assert "{remote_checkpoint_path}" in problems[0].hint


def test_external_validation_needs_its_script() -> None:
    assert problems_of(validation_method="external_script") == [("validation_external_script", "missing")]
    _, problems = check_options({**COMPLETE, "validation_external_script": "/hooks/a", "validation_external_background": True})
    ours = [(problem.option, problem.code, problem.level) for problem in problems if problem.option.startswith("validation")]
    assert ours == [
        ("validation_external_script", "no_effect", Level.NOTE),
        ("validation_external_background", "no_effect", Level.NOTE),
    ]


def test_a_low_disk_needs_its_script_and_the_script_its_action() -> None:
    assert problems_of(disk_low_action="script") == [("disk_low_script", "missing")]
    assert problems_of(disk_low_action="script", disk_low_script="/hooks/tidy.sh {global_step}") == []
    assert problems_of(disk_low_script="null") == []
    for action in ("stop", "wait"):
        _, problems = check_options({**COMPLETE, "disk_low_action": action, "disk_low_script": "/hooks/tidy.sh"})
        assert [(problem.option, problem.code, problem.level) for problem in problems] == [("disk_low_script", "no_effect", Level.NOTE)]
        assert problems[0].hint == "set disk_low_action=script"


def test_external_validation_that_is_turned_off_is_noted() -> None:
    values = {"validation_method": "external-script", "validation_external_script": "/hooks/a", "validation_disable": True}
    _, problems = check_options({**COMPLETE, **values})
    assert [(problem.code, problem.level) for problem in problems] == [("no_effect", Level.NOTE)]


def program(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def code(rule: ScriptRule, path: Path) -> str:
    refusal = rule.refusal(path)
    return refusal.code if refusal else ""


def test_only_programs_in_listed_folders_run(tmp_path: Path) -> None:
    rule = ScriptRule(folders=(str(tmp_path / "hooks"),))
    inside, outside = program(tmp_path / "hooks/below/a.sh"), program(tmp_path / "hooks-of-others/a.sh")
    assert (code(rule, inside), code(rule, outside)) == ("", "script_not_allowed")
    assert code(rule, tmp_path / "hooks/../hooks-of-others/a.sh") == "script_not_allowed"
    assert code(NOTHING, inside) == "script_not_allowed"
    assert code(EVERYTHING, outside) == ""


def test_a_link_out_of_the_folder_leads_nowhere(tmp_path: Path) -> None:
    rule = ScriptRule(folders=(str(tmp_path / "hooks"),))
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/shell").symlink_to("/bin/sh")
    assert code(rule, tmp_path / "hooks/shell") == "script_not_allowed"


def test_what_cannot_run_says_why(tmp_path: Path) -> None:
    rule = ScriptRule(folders=(str(tmp_path),))
    assert code(rule, tmp_path / "gone.sh") == "script_not_found"
    assert code(rule, tmp_path) == "script_not_a_file"
    assert code(rule, program(tmp_path / "a.sh", mode=0o644)) == "script_not_executable"
    assert code(rule, Path("/nowhere/at/all")) == "script_not_allowed"


def test_python_that_cannot_start_by_itself_runs_with_ours(tmp_path: Path) -> None:
    by_itself = program(tmp_path / "a.py", "#!/bin/sh\n")
    without_line = program(tmp_path / "b.py", "print()\n")
    without_bit = program(tmp_path / "c.py", "#!/bin/sh\n", mode=0o644)
    of_another_machine = program(tmp_path / "d.py", "#!/opt/no-such-python\n")
    assert start_of_command(by_itself) == [str(by_itself)]
    for path in (without_line, without_bit, of_another_machine):
        assert code(EVERYTHING, path) == ""
        assert start_of_command(path) == [sys.executable, str(path)]


def test_the_page_names_every_placeholder_option_and_variable() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs/hooks.md").read_text(encoding="utf-8")
    assert [name for name in (*CONTEXT, *SCRIPT_OPTIONS, *SEEN_BY_SCRIPTS) if name not in page] == []

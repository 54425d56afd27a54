"""Which program a template means, and what is said of one that may not or cannot run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from environments.paths import SHIPPED_SCRIPTS, Home
from environments.resolve.checks import check_config
from environments.resolve.hooks import find_program, resolve_scripts
from environments.resolve.run import resolve_run


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", roots=(), hooks=(tmp_path / "opt hooks",))


def resolved(home: Home, template: str, **given: Any) -> tuple[str, list[str]]:
    """(what the template became, codes of the problems)."""
    found, problems = resolve_scripts({"post_upload_script": template, **given}, home)
    assert all(problem.hint and problem.option == "post_upload_script" for problem in problems)
    return found.get("post_upload_script", ""), [problem.code for problem in problems]


def test_a_listed_program_becomes_absolute_and_its_arguments_stay(home: Home, tmp_path: Path) -> None:
    path = program(tmp_path / "opt hooks/notify.sh")
    template, codes = resolved(home, f"'{path}' {{remote_checkpoint_path}} 'two words'")
    assert (template, codes) == (f"'{path}' '{{remote_checkpoint_path}}' 'two words'", [])


def test_a_bare_name_is_looked_for_in_the_hooks_folders(home: Home) -> None:
    path = program(home.state / "hooks/notify.sh")
    assert resolved(home, "notify.sh") == (str(path), [])


def test_a_program_elsewhere_is_not_allowed_whether_it_is_there_or_not(home: Home) -> None:
    program(home.root / "mine.sh")
    for template in ("mine.sh", "/bin/sh -c true", "sh -c true", "/nowhere/x", "~/x.sh", "../x.sh"):
        assert resolved(home, template) == ("", ["script_not_allowed"])


def test_the_operator_may_allow_every_program(home: Home) -> None:
    free = Home(home.root, roots=(), any_script=True)
    path, below = program(home.root / "mine.sh"), program(home.config / "tools/x.sh")
    assert resolved(free, "mine.sh") == (str(path), [])
    assert resolved(free, "tools/x.sh") == (str(below), [])
    assert resolved(free, "sh -c true")[1] == []
    assert resolved(free, "gone.sh") == ("", ["script_not_found"])
    assert resolved(free, str(program(home.root / "plain", mode=0o644))) == ("", ["script_not_executable"])


def test_a_server_that_others_reach_starts_no_program_at_all(home: Home) -> None:
    shut = Home(home.root, roots=(), any_script=True, no_script=True)
    program(home.state / "hooks" / "notify.sh")
    for template in ("notify.sh", "sh -c true", "simpletuner/examples/external-validation/replicate_post_upload.py"):
        assert resolved(shut, template) == ("", ["script_not_allowed"])
    assert "hooks are off" in str(resolve_scripts({"post_upload_script": "sh -c true"}, shut)[1][0].message)


def test_the_tutorials_path_leads_to_the_samples(home: Home) -> None:
    given = "simpletuner/examples/external-validation/replicate_post_upload.py {remote_checkpoint_path}"
    template, codes = resolved(home, given)
    assert codes == []
    assert template.startswith(str(SHIPPED_SCRIPTS / "replicate_post_upload.py"))
    assert resolved(home, "simpletuner/examples/external-validation/../../../config_files.py")[1] == ["script_not_allowed"]


def test_a_script_that_the_run_would_not_use_is_not_looked_for(home: Home) -> None:
    given = {"validation_external_script": "/nowhere/x"}
    assert resolve_scripts(given, home) == ({}, [])
    _, problems = resolve_scripts(given | {"validation_method": "external-script"}, home)
    assert [problem.code for problem in problems] == ["script_not_allowed"]


def test_a_script_for_a_low_disk_is_looked_for_where_it_would_run(home: Home) -> None:
    given = {"disk_low_script": "tidy.sh {global_step}"}
    assert resolve_scripts(given | {"disk_low_action": "wait"}, home) == ({}, [])
    _, problems = resolve_scripts(given | {"disk_low_action": "script"}, home)
    assert [(problem.option, problem.code) for problem in problems] == [("disk_low_script", "script_not_found")]
    path = program(home.state / "hooks/tidy.sh")
    found, problems = resolve_scripts(given | {"disk_low_action": "script"}, home)
    assert (found, problems) == ({"disk_low_script": f"{path} '{{global_step}}'"}, [])
    _, problems = resolve_scripts({"disk_low_action": "script", "disk_low_script": "/bin/rm -rf x"}, home)
    assert [problem.code for problem in problems] == ["script_not_allowed"]


def test_a_run_reports_it_and_an_environment_is_stored_with_a_warning(home: Home, tmp_path: Path) -> None:
    home.root.mkdir()
    (home.root / "data.json").write_text(json.dumps([]))
    values = {
        "model_family": "pixart_sigma",
        "model_type": "full",
        "output_dir": "out",
        "data_backend_config": "data.json",
        "max_train_steps": 1,
        "num_train_epochs": 0,
        "post_checkpoint_script": "/opt/hooks/gone.sh",
    }
    run = resolve_run(home, values, {})
    reported = [problem for problem in run.errors if problem.option == "post_checkpoint_script"]
    assert [problem.code for problem in reported] == ["script_not_allowed"]
    assert "--allow-scripts" in reported[0].hint
    checked = check_config(values, home)
    assert not checked.errors
    assert any("post_checkpoint_script" in warning for warning in checked.warnings)
    path = program(tmp_path / "opt hooks/there.sh")
    run = resolve_run(home, values, {"post_checkpoint_script": f"'{path}' {{global_step}}"})
    assert run.given["post_checkpoint_script"] == f"'{path}' {{global_step}}"
    assert run.values["post_checkpoint_script"] == f"'{path}' '{{global_step}}'"


def test_the_rule_holds_real_folders(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    home = Home(tmp_path / "home", hooks=(tmp_path / "link",), script_variables=("TOKEN",))
    assert str(tmp_path / "real") in home.script_rule.folders
    assert home.script_rule.variables == ("TOKEN",)
    assert find_program(sys.executable, home) == Path(sys.executable)


@pytest.mark.parametrize("program", ["n" * 300, "/tmp/" + "n" * 300, "~/" + "n" * 300, "a\0b", "é" * 200, "d/" * 3000 + "x"])
def test_a_program_that_no_file_system_holds_is_a_problem(program: str, home: Home) -> None:
    _, problems = resolve_scripts({"post_upload_script": program}, home)
    assert [problem.option for problem in problems] == ["post_upload_script"]

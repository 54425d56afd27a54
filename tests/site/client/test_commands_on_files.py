"""The commands where no server runs: they work on the files of a home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections

from simpletuner_site import cli
from simpletuner_site.client import connection
from simpletuner_site.train.command import open_config
from tests.helpers.live_server import REPOSITORY
from tests.helpers.tiny_run import tiny_datasets, tiny_options

WRITES = "import sys, pathlib; p = pathlib.Path(sys.argv[-1]); p.write_text(p.read_text().replace(sys.argv[1], sys.argv[2]))"
"""An editor that replaces one text by another."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def in_a_process(*arguments: str, home: Path) -> Ended:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "SIMPLETUNER_HOME": str(home)}
    command = [sys.executable, "-m", "simpletuner_site.cli", *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def simpletuner(home: Path, db: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs a command in this process, whose Django serves the home already. There is one active environment, ``first``."""
    signals = (request_started, request_finished)
    for signal in signals:  # the connection is the test's, whose transaction must last
        signal.disconnect(close_old_connections)
    monkeypatch.setattr(connection, "_application", lambda _: get_wsgi_application())

    def call(*arguments: str, **variables: str) -> Ended:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code = cli.main([*arguments, "--home", str(home)])
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    made = call("env", "create", "first", "--family", "pixart_sigma", "--json")
    assert made.returncode == 0 and json.loads(made.stdout)["environment"]["model_type"] == "lora", made.stderr
    assert call("env", "activate", "first").returncode == 0
    yield call
    for signal in signals:
        signal.connect(close_old_connections)


def test_a_new_home_is_made_by_the_first_command(tmp_path: Path) -> None:
    made = in_a_process("env", "create", "first", "--family", "pixart_sigma", home=tmp_path)
    assert made.returncode == 0 and (tmp_path / "config/first/multidatabackend.json").is_file(), made.stderr
    listed = in_a_process("env", "list", home=tmp_path)
    assert listed.returncode == 0 and "first" in listed.stdout and "lora (standard)" in listed.stdout


def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m simpletuner_site.cli options a --home {tmp_path} | head -1"
    ended = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.stderr == "" and ended.stdout


def test_a_home_without_a_server_is_read_and_written(simpletuner: Any, home: Path) -> None:
    listed = simpletuner("env", "list")
    assert listed.returncode == 0 and "*" in listed.stdout and "first" in listed.stdout and "lora (standard)" in listed.stdout
    assert (home / "config/first/config.json").is_file() and (home / "config/first/multidatabackend.json").is_file()
    idle = simpletuner("status")
    assert idle.returncode == 0 and "no server runs there" in idle.stdout


def test_options_are_edited_by_name_and_a_wrong_one_changes_nothing(simpletuner: Any, home: Path) -> None:
    edited = simpletuner("env", "edit", "-o", "learning_rate=0.0002", "-o", "seed=9", "--unset", "validation_seed")
    assert edited.returncode == 0, edited.stderr
    stored = json.loads((home / "config/first/config.json").read_text())
    assert (stored["--learning_rate"], stored["--seed"]) == (0.0002, 9) and "--validation_seed" not in stored
    refused = simpletuner("env", "edit", "first", "-o", "learning_rate=fast")
    assert refused.returncode == 2 and "learning_rate" in refused.stderr and "Traceback" not in refused.stderr
    assert json.loads((home / "config/first/config.json").read_text()) == stored


def test_an_editor_changes_the_configuration_and_keeps_what_was_refused(simpletuner: Any, home: Path, tmp_path: Path) -> None:
    editor = f"{sys.executable} -c '{WRITES}'"
    changed = simpletuner("env", "edit", "first", EDITOR=f"{editor} 1000 77")
    assert changed.returncode == 0 and "updated" in changed.stdout, changed.stderr
    assert json.loads((home / "config/first/config.json").read_text())["--max_train_steps"] == 77
    assert "as it was" in simpletuner("env", "edit", "first", EDITOR="true").stdout
    broken = simpletuner("env", "edit", "first", EDITOR=f"{editor} 77 seventy")
    kept = Path(broken.stderr.partition("What you typed is in ")[2].split()[0].rstrip("."))
    assert broken.returncode == 2 and "seventy" in kept.read_text()
    kept.unlink()
    garbled = simpletuner("env", "edit", "first", EDITOR="""sh -c 'printf "\\377" > "$0"'""")
    assert garbled.returncode == 2 and "is not UTF-8" in garbled.stderr and "Traceback" not in garbled.stderr
    assert "editor ended with code 1" in simpletuner("env", "edit", "first", EDITOR="false").stderr
    assert "cannot be started" in simpletuner("env", "edit", "first", EDITOR="/nowhere/vi").stderr


def test_an_environment_is_copied_and_exported_once_into_a_new_file(simpletuner: Any, home: Path, tmp_path: Path) -> None:
    assert simpletuner("env", "copy", "first", "second").returncode == 0
    file = tmp_path / "second.json"
    assert simpletuner("env", "export", "second", "--bare", "--output", str(file)).returncode == 0
    assert json.loads(file.read_text())["--model_family"] == "pixart_sigma"
    again = simpletuner("env", "export", "second", "--output", str(file))
    assert again.returncode == 2 and "exists" in again.stderr


def test_a_start_without_a_server_names_what_trains(simpletuner: Any, home: Path) -> None:
    refused = simpletuner("start")
    assert refused.returncode == 2 and "simpletuner server" in refused.stderr and "simpletuner train --environment" in refused.stderr


def test_a_check_lists_problems_and_ends_with_the_code_of_a_wrong_configuration(simpletuner: Any, home: Path) -> None:
    checked = simpletuner("check", "--json")
    report = json.loads(checked.stdout)
    assert checked.returncode == 20 and report["valid"] is False
    assert any("instance_data_dir" in problem["option"] for problem in report["problems"])


def test_a_refusal_is_json_for_a_script(simpletuner: Any, home: Path) -> None:
    refused = simpletuner("env", "show", "nowhere", "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stdout) == {"problems": [], "detail": "Configuration 'nowhere' not found"}


def test_a_refusal_with_one_problem_says_what_is_expected(simpletuner: Any, home: Path) -> None:
    refused = simpletuner("env", "create", "another", "--family", "nothing")
    assert refused.returncode == 2 and "expected: one of anima" in refused.stderr and "z_image" in refused.stderr


@pytest.mark.slow
def test_train_takes_an_environment_by_name_and_options_for_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "tiny"
    folder.mkdir(parents=True)
    datasets = folder / "multidatabackend.json"
    datasets.write_text(json.dumps(tiny_datasets(tmp_path)))
    options = {**tiny_options(tmp_path), "data_backend_config": str(datasets)}
    config = folder / "config.json"
    config.write_text(json.dumps({f"--{name}": value for name, value in options.items()}))
    before = config.read_bytes()
    ended = in_a_process("train", "--environment", "tiny", "-o", "max_train_steps=2", "--home", str(tmp_path), home=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "completed at step 2" in ended.stdout + ended.stderr and config.read_bytes() == before
    refused = in_a_process("train", "--environment", "tiny", "-o", "max_train_steps=few", home=tmp_path)
    assert refused.returncode == 20 and "max_train_steps" in refused.stdout + refused.stderr


def test_options_of_one_run_win_over_the_file(home: Path) -> None:
    folder = home / "config" / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"--model_family": "pixart_sigma", "--max_train_steps": 9, "--seed": 3}))
    arguments = cli.build_parser().parse_args(["train", "--environment", "tiny", "-o", "max_train_steps=2", "-o", "max_train_steps=4"])
    assert (arguments.environment, arguments.option) == ("tiny", {"--max_train_steps": "4"})
    resolved = open_config(folder / "config.json", home, arguments.option)[1]
    assert (resolved.given["max_train_steps"], resolved.given["seed"]) == (4, 3)
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["train", "--environment", "tiny", "--config", "x.json"])

"""``simpletuner import``: prints what it takes and leaves out, and writes an environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simpletuner_site.cli import main
from tests.environments.imports.test_ai_toolkit import FLUX_LORA
from tests.environments.imports.test_kohya import DATASETS, LOKR


def written(folder: Path, **texts: str) -> list[str]:
    """Files with these names, in which ``_`` stands for the dot."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, text in texts.items():
        path = folder / name.replace("_", ".")
        path.write_text(text)
        paths.append(str(path))
    return paths


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as it sets Django up for the home."""
    line = [sys.executable, "-m", "simpletuner_site.cli", "import", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SIMPLETUNER", "DJANGO", "DATABASE"))}
    return subprocess.run(line, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_a_dry_run_prints_both_tables_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, home = written(tmp_path / "files", job_yaml=FLUX_LORA), tmp_path / "home"
    home.mkdir()
    assert main(["import", *files, "--home", str(home), "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "watercolour_v1: 39 options taken, 12 values left out; nothing was written." in printed
    assert "Left out" in printed and "low_vram" in printed and "hf_very_secret" not in printed
    assert list(home.iterdir()) == []


def test_json_is_the_whole_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = written(tmp_path / "files", train_toml=LOKR, data_toml=DATASETS)
    assert main(["import", *files, "--home", str(tmp_path), "--dry-run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["format"], report["adapter"]["algo"]) == ("style_lokr", "kohya", "lokr")
    assert report["config"]["--optimizer"] == "prodigy" and {"name", "value", "reason"} == set(report["left_out"][0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "nonsense"], "no format"),
        (["--name", "a/b"], "cannot be the name of an environment"),
        (["--from", "musubi"], "names no model"),
    ],
)
def test_a_refusal_ends_with_20(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    files = written(tmp_path / "files", job_yaml=FLUX_LORA)
    assert main(["import", *files, "--home", str(tmp_path), "--dry-run", *arguments]) == 20
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(tmp_path / "nothing.yaml"), "--home", str(tmp_path), "--dry-run"]) == 20
    assert "nothing.yamlcannotberead" in "".join(capsys.readouterr().err.split())


def test_an_environment_is_written_once(tmp_path: Path) -> None:
    files, home = written(tmp_path / "files", job_yaml=FLUX_LORA), tmp_path / "home"
    first = command(*files, "--home", home, "--name", "mine")
    assert first.returncode == 0, first.stderr
    folder = home / "config" / "mine"
    config = json.loads((folder / "config.json").read_text())
    assert config["--model_family"] == "flux" and config["--data_backend_config"] == "mine/multidatabackend.json"
    assert json.loads((folder / "multidatabackend.json").read_text())[0]["id"] == "watercolour"
    again = command(*files, "--home", home, "--name", "mine")
    assert again.returncode == 20 and "already" in again.stderr
    assert json.loads((folder / "config.json").read_text()) == config

"""``simpletuner check``: says what stands in the way, without a server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simpletuner_site.cli import main

CONFIG = {
    "--model_family": "sdxl",
    "--model_type": "lora",
    "--data_backend_config": "config/x/multidatabackend.json",
    "--output_dir": "out",
    "--max_train_steps": 10,
}
DATASETS = [{"id": "a", "instance_data_dir": "/pictures", "caption_strategy": "filename"}]


def written(folder: Path, config: object, datasets: object | None = DATASETS) -> Path:
    folder.mkdir(parents=True)
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    if datasets is not None:
        (folder / "multidatabackend.json").write_text(json.dumps(datasets))
    return file


def check(*arguments: object) -> int:
    return main(["check", *map(str, arguments)])


def test_a_configuration_that_starts_ends_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--config", written(tmp_path / "config" / "x", CONFIG)) == 0
    assert "5 options and 1 datasets: nothing in the configuration stands in the way" in " ".join(capsys.readouterr().out.split())


def test_exported_files_are_read_within_their_wrappers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = {"_metadata": {"name": "x", "tags": []}}
    assert check("--config", written(tmp_path / "config" / "x", {**meta, "config": CONFIG}, {**meta, "datasets": DATASETS})) == 0
    assert "5 options and 1 datasets" in " ".join(capsys.readouterr().out.split())


def test_obstacles_are_printed_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "config" / "x", {**CONFIG, "--trust_remote_code": True, "--whatever": 1})
    assert check("--config", file) == 20
    printed = " ".join(capsys.readouterr().out.split())
    assert "Refused because it is unsafe (1)" in printed and "Names that the format does not have (1)" in printed
    assert "2 problems in the way of a start" in printed


def test_json_is_the_report_of_the_api(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "config" / "x", {**CONFIG, "--model_family": "ltxvideo2"})
    assert check("--config", file, "--json") == 20
    report = json.loads(capsys.readouterr().out)
    assert report["family"] == {"name": "ltxvideo2", "available": False} and report["datasets"] == 1


def test_the_datasets_file_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "elsewhere", CONFIG, None)
    assert check("--config", file) == 0
    assert "The datasets file was not found" in capsys.readouterr().out
    other = tmp_path / "sets.json"
    other.write_text(json.dumps([{**DATASETS[0], "nonsense": 1}]))
    assert check("--config", file, "--datasets", other) == 20
    assert "nonsense" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[]", '"text"', None])
def test_a_file_that_holds_no_configuration_is_named(tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    assert check("--config", file) == 20
    assert "config.json" in capsys.readouterr().err.replace("\n", "")


def test_a_datasets_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path / "config" / "x", CONFIG)
    (file.parent / "multidatabackend.json").write_text("[{]")
    assert check("--config", file) == 20
    assert "multidatabackend.json" in capsys.readouterr().err.replace("\n", "")

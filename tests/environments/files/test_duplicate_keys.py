"""A key that occurs twice in a file of a person is a problem with its name, whichever file it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from environments.files.adapter_file import read_adapter_file
from environments.paths import Home
from environments.resolve.run import resolve_run
from simpletuner_site.train.config_file import UnreadableConfig, read_config
from trainer_engine.config.families import find_spec
from trainer_engine.config.json_fields import read_json
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Problem
from training.preflight.adapter import adapter_problems

DATASETS = '[{"id": "a", "instance_data_dir": "pictures", "repeats": 3, "repeats": 0}]'
ADAPTER = '{"algo": "lokr", "linear_dim": 8, "linear_dim": 10000, "linear_alpha": 1}'


def problems_of(home: Path, **files: str) -> list[Problem]:
    """Of a run whose datasets and adapter files hold these texts."""
    (home / "config/tiny").mkdir(parents=True)
    (home / "pictures").mkdir()
    values: dict[str, Any] = {"model_family": "pixart_sigma", "model_type": "lora", "output_dir": str(home / "output")}
    values |= {"lora_type": "lycoris", "data_backend_config": "tiny/sets.json", "lycoris_config": "tiny/lycoris.json"}
    texts = {"sets": json.dumps([{"id": "a", "instance_data_dir": "pictures"}]), "lycoris": '{"algo": "lokr"}', **files}
    for name, text in texts.items():
        (home / f"config/tiny/{name}.json").write_text(text)
    return resolve_run(Home(home), values, {}).problems


def test_the_datasets_file_names_the_key(tmp_path: Path) -> None:
    [found] = [problem for problem in problems_of(tmp_path, sets=DATASETS) if problem.code == "invalid_json"]
    assert found.option == "data_backend_config" and "the key 'repeats' occurs twice" in found.message


def test_the_configuration_of_the_command_line_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"--seed": 1, "--seed": 2}')
    with pytest.raises(UnreadableConfig, match="the key '--seed' occurs twice"):
        read_config(tmp_path / "config.json")


def test_the_adapter_file_names_the_key_before_a_run_and_in_it(tmp_path: Path) -> None:
    path = tmp_path / "config/tiny/lycoris_config.json"
    path.parent.mkdir(parents=True)
    path.write_text(ADAPTER)
    values = {"model_family": "pixart_sigma", "model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(path)}
    needed = {"output_dir": "o", "data_backend_config": "d", "max_train_steps": 1, "num_train_epochs": 0, "train_batch_size": 1}
    options, spec = parse_options(values | needed), find_spec("pixart_sigma")
    assert spec is not None
    for problems in ([read_adapter_file(path, Home(tmp_path))[1]], list(adapter_problems(options, spec, None, values))):
        assert [problem.option for problem in problems if problem and "the key 'linear_dim' occurs twice" in problem.message] == [
            "lycoris_config"
        ]


def test_json_in_an_option_names_the_key() -> None:
    _, [problem] = read_json('[{"provider": "local", "provider": "s3"}]', "publishing_config")
    assert "the key 'provider' occurs twice" in problem.message

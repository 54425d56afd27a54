"""What is said of scoring before a run starts: the model on disk or on the hub, and options that score nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Training
from trainer_engine.config.parse import parse_options
from training.preflight.base_model import HubSettings
from training.preflight.scoring import OPTION, scoring_problems

RUN = {"model_family": "pixart_sigma", "model_type": "full", "data_backend_config": "/x.json", "output_dir": "/out", "max_train_steps": 9}


def write_clip(folder: Path, *, kind: Any = "clip", without: str = "") -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        if name != without:
            (folder / name).write_text({"config.json": json.dumps({"model_type": kind}), "preprocessor_config.json": "{}"}.get(name, ""))
    return folder


def reported(hub: HubSettings, source: str, **options: Any) -> list[tuple[str, str]]:
    chosen = parse_options({**RUN, "num_train_epochs": 0, "evaluation_type": "clip", OPTION: source, **options})
    return [(problem.option, problem.code) for problem in scoring_problems(chosen, hub)]


@pytest.fixture
def offline(tmp_path: Path) -> HubSettings:
    return HubSettings.of({"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"})


def test_a_scoring_model_in_a_folder_is_checked(tmp_path: Path, offline: HubSettings) -> None:
    whole = write_clip(tmp_path / "whole")
    assert reported(offline, str(whole)) == []
    wrong = {
        "not_found": tmp_path / "nowhere",
        "not_a_clip_model": write_clip(tmp_path / "siglip", kind="siglip"),
        "incomplete_model": write_clip(tmp_path / "bare", without="model.safetensors"),
    }
    for code, folder in wrong.items():
        assert reported(offline, str(folder)) == [(OPTION, code)]
    assert reported(offline, str(write_clip(tmp_path / "unsaid", without="config.json"))) == [(OPTION, "not_a_clip_model")]
    assert reported(offline, str(write_clip(tmp_path / "eyeless", without="preprocessor_config.json"))) == [(OPTION, "incomplete_model")]
    (whole / "config.json").write_text("[1]")
    assert reported(offline, str(whole)) == [(OPTION, "not_a_clip_model")]


def test_a_scoring_repository_is_looked_up_in_the_cache(tmp_path: Path, offline: HubSettings) -> None:
    assert reported(offline, "some-org/clip") == [(OPTION, "model_not_cached")]
    repository = offline.cache / "models--some-org--clip"
    write_clip(repository / "snapshots/abc", kind="siglip")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    assert reported(offline, "some-org/clip") == [(OPTION, "not_a_clip_model")]
    (repository / "snapshots/abc/config.json").write_text('{"model_type": "clip"}')
    assert reported(offline, "some-org/clip") == []


def test_where_nothing_is_scored_no_model_is_needed(offline: HubSettings) -> None:
    assert reported(offline, "/nowhere", evaluation_type="none") == []
    assert reported(offline, "/nowhere", validation_disable=True) == []


def test_validate_reports_the_scoring_model(training: Training) -> None:
    folder = write_clip(training.home / "models" / "siglip", kind="siglip")

    def said(**changes: str) -> dict[str, str]:
        form = {**training.form, **{f"--{name}": value for name, value in changes.items()}}
        answer = training.post("/validate", form).json()
        problems = [one for key in ("problems", "warnings", "notes") for one in answer.get(key) or [] if isinstance(one, dict)]
        return {one["option"]: one["code"] for one in problems if one["option"] in (OPTION, "evaluation_type")}

    scored = {"evaluation_type": "clip", OPTION: str(folder), "validation_disable": "false", "validation_prompt": "a cat"}
    assert said(**scored) == {OPTION: "not_a_clip_model"}
    assert said(**{**scored, "validation_prompt": ""}) == {OPTION: "not_a_clip_model", "evaluation_type": "nothing_to_score"}
    assert said(**{**scored, "validation_disable": "true"}) == {"evaluation_type": "no_effect"}
    assert said(**{**scored, "evaluation_type": "none"}) == {OPTION: "no_effect"}
    assert said() == {}

"""What ``validate`` says of the configuration that a tiny run was, or would be, made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.tiny_run import tiny_datasets, tiny_options
from trainer_engine.contract.errors import Problem
from training.preflight.run import examine_run
from training.preflight.summary import PreflightReport


def checked(place: Path, *, datasets: list[dict[str, Any]] | None = None, hf_home: Path | None = None, **options: Any) -> PreflightReport:
    """Of ``tiny_options(place, **options)``, with the data of ``tiny_datasets``."""
    home = Home(place)
    home.config.mkdir(exist_ok=True)
    chosen = tiny_options(place, **options)
    Path(chosen["data_backend_config"]).write_text(json.dumps(datasets or tiny_datasets(place)))
    variables = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(hf_home or place / "hf")}
    return examine_run(resolve_run(home, {}, {f"--{name}": value for name, value in chosen.items()}), home, variables)


def refusal(report: PreflightReport) -> Problem:
    """The only error."""
    assert len(report.errors) == 1, [str(problem) for problem in report.errors]
    return report.errors[0]


def codes(report: PreflightReport) -> set[str]:
    return {problem.code for problem in report.problems}


def memory_of_training(understood: Mapping[str, Any]) -> Mapping[str, int]:
    """The memory estimate of the training alone, whatever phase needs the most."""
    training: Mapping[str, int]
    [training] = [phase for phase in understood["memory"]["phases"] if phase["name"] == "training"]
    return training

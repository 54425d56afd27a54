"""Images beyond the positions of a network: of datasets, of later epochs and of validations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.helpers.tiny_run import tiny_datasets, tiny_options
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import specs
from trainer_engine.config.parse import parse_options
from trainer_engine.config.positions import PositionSpec
from trainer_engine.contract.errors import Problem, errors_in
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.long_edges import beyond_positions

PIXART = specs()["pixart_sigma"]
PIXELS = 16
"""Of a token, each way."""


def refused(place: Path, edge_px: int, fields: dict[str, Any] | None = None, **options: Any) -> list[Problem]:
    """What is said if the network has positions for edges of so many pixels."""
    chosen = parse_options(tiny_options(place, **options))
    dataloader, problems = parse_dataloader(tiny_datasets(place, images=2, resolution=128, **(fields or {})), chosen)
    assert problems == []
    spec = replace(PIXART, positions=PositionSpec(key="positions", published=1))
    report = examine(dataloader, chosen, spec)
    assert errors_in(report.problems) == []
    assert list(beyond_positions(chosen, PIXART, report, {"positions": 1})) == [], "a family without a square of positions takes any edge"
    return list(beyond_positions(chosen, spec, report, {"positions": (edge_px // PIXELS) ** 2}))


def test_a_dataset_with_longer_edges_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, 192) == []
    (problem,) = refused(tmp_path, 176)
    assert (problem.option, problem.got) == ("dataloader[0].resolution", "192x64")


def test_every_aspect_of_later_epochs_is_looked_at(tmp_path: Path) -> None:
    aspects = {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [1.0, 4.0], "vae_cache_clear_each_epoch": True}
    (problem,) = refused(tmp_path, 32, aspects)
    assert "128x128" in problem.message and "256x64" in problem.message


def test_a_validation_image_with_longer_edges_is_refused(tmp_path: Path) -> None:
    shown = {"validation_disable": False, "validation_prompt": "a cat", "validation_resolution": "64x64,64x256"}
    (problem,) = refused(tmp_path, 192, **shown)
    assert (problem.option, problem.got) == ("validation_resolution", "64x256")
    assert refused(tmp_path, 256, **shown) == []

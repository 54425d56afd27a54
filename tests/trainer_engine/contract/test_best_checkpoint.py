"""The best checkpoint follows from the manifests of those that are there."""

from __future__ import annotations

import json
from pathlib import Path

from tests.trainer_engine.contract.test_checkpoint_files import make
from trainer_engine.contract.best_checkpoint import BEST_FILE, best_of, point_to_best
from trainer_engine.contract.checkpoint_files import list_checkpoints


def evaluated(output_dir: Path, step: int, loss: float | None, measure: str = "ab") -> Path:
    return make(output_dir, step, evaluation={"loss": loss, "measure": measure, "datasets": ["held-out"]})


def best_step(output_dir: Path) -> int | None:
    best = best_of(list_checkpoints(output_dir))
    return best.step if best else None


def test_it_has_the_lowest_loss_and_is_the_earliest_of_several(tmp_path: Path) -> None:
    for step, loss in ((1, 0.5), (2, 0.3), (3, None), (4, 0.3), (5, 0.4)):
        evaluated(tmp_path, step, loss)
    make(tmp_path, 6)
    assert best_step(tmp_path) == 2


def test_without_evaluations_there_is_none(tmp_path: Path) -> None:
    make(tmp_path, 1)
    evaluated(tmp_path, 2, None)
    make(tmp_path, 3, evaluation={"loss": "low", "measure": "ab", "datasets": []})
    make(tmp_path, 4, evaluation=None)
    assert best_step(tmp_path) is None


def test_losses_of_another_measure_are_not_compared(tmp_path: Path) -> None:
    evaluated(tmp_path, 1, 0.1, "old")
    evaluated(tmp_path, 2, 0.5, "new")
    assert best_step(tmp_path) == 2


def test_a_broken_one_is_not_the_best(tmp_path: Path) -> None:
    (evaluated(tmp_path, 1, 0.1) / "transformer/weights.safetensors").unlink()
    evaluated(tmp_path, 2, 0.5)
    assert best_step(tmp_path) == 2


def test_the_file_names_it_and_goes_with_it(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, 7, 0.25)
    assert point_to_best(tmp_path) is not None
    assert json.loads((tmp_path / BEST_FILE).read_text()) == {
        "name": "checkpoint-7",
        "step": 7,
        "eval_loss": 0.25,
        "datasets": ["held-out"],
    }
    folder.rename(tmp_path / "aside")
    assert point_to_best(tmp_path) is None and not (tmp_path / BEST_FILE).exists()

"""Folders named like checkpoints that somebody else wrote never keep the others from being listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoint_folder import write_checkpoint
from trainer_engine.contract.checkpoint_files import list_checkpoints

ODD = [float("nan"), float("inf"), "x", None, [], {}, True, 10**400, -1, [[]]]


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("key", ["step", "epoch", "loss", "learning_rate", "model_family", "created_at", "evaluation", "files", "version"])
def test_a_manifest_with_odd_values_does_not_hide_the_others(key: str, value: Any, tmp_path: Path) -> None:
    for step in (5, 10):
        write_checkpoint(tmp_path, step)
    path = tmp_path / "checkpoint-10" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    found = list_checkpoints(tmp_path)
    assert found[-1].name == "checkpoint-5"
    json.dumps([[one.epoch, one.loss, one.learning_rate, one.eval_loss, one.size_bytes] for one in found], allow_nan=False)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "\ufeff{}", "null", "", "\0"], ids=range(6))
def test_a_manifest_that_is_none_does_not_hide_the_others(text: str, tmp_path: Path) -> None:
    for step in (5, 10):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-10" / "manifest.json").write_text(text)
    assert [one.name for one in list_checkpoints(tmp_path)] == ["checkpoint-5"]

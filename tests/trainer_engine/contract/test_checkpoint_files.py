"""Checkpoints in an output folder: which are listed, what verification finds, and which one is the best."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.checkpoint_folder import write_checkpoint
from trainer_engine.contract.best_checkpoint import BEST_FILE, best_of, point_to_best
from trainer_engine.contract.checkpoint_files import (
    MANIFEST,
    VERSION,
    folders,
    list_checkpoints,
    newest_verified,
    step_of,
    verify,
    verify_quickly,
)
from trainer_engine.contract.files import sha256_of


def make(output_dir: Path, step: int, **changes: Any) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer/weights.safetensors").write_bytes(os.urandom(1000))
    (folder / "training_state.json").write_text(f'{{"step": {step}}}')
    files = [path for path in folder.rglob("*") if path.is_file()]
    manifest = {
        "version": VERSION,
        "step": step,
        "epoch": 2,
        "loss": 0.25,
        "learning_rate": 1e-4,
        "model_family": "pixart_sigma",
        "created_at": "2026-01-01T00:00:00+00:00",
        "files": {str(path.relative_to(folder)): {"sha256": sha256_of(path), "size": path.stat().st_size} for path in files},
        **changes,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_checkpoints_are_listed_newest_step_first(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        make(tmp_path, step)
    found = list_checkpoints(tmp_path)
    assert [info.name for info in found] == ["checkpoint-100", "checkpoint-20", "checkpoint-9"]
    assert found[0].epoch == 2 and found[0].loss == 0.25 and found[0].learning_rate == 1e-4
    assert found[0].size_bytes > 1000 and all(info.verified for info in found)


def test_folders_of_other_programs_are_not_listed(tmp_path: Path) -> None:
    for name in ("checkpoint-5", "checkpoint-x", ".checkpoint-6.tmp-ab", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    make(tmp_path, 3)
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "checkpoint-3")
    assert [info.step for info in list_checkpoints(tmp_path)] == [3]
    assert [folder.name for folder in folders(tmp_path)] == ["checkpoint-5", "checkpoint-3"]


def test_a_folder_that_does_not_exist_holds_no_checkpoint(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "missing") == []
    assert newest_verified(tmp_path / "missing") is None


def test_a_complete_checkpoint_verifies(tmp_path: Path) -> None:
    assert verify(make(tmp_path, 1)) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "was changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "999 bytes instead of 1000"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: (path.unlink(), path.mkdir()), "bytes instead of"),
    ],
)
def test_damage_is_named_and_the_one_before_is_the_newest(tmp_path: Path, damage: Any, said: str) -> None:
    make(tmp_path, 1)
    broken = make(tmp_path, 2)
    damage(broken / "transformer/weights.safetensors")
    (problem,) = verify(broken)
    assert "transformer/weights.safetensors" in problem and said in problem
    assert [info.verified for info in list_checkpoints(tmp_path)] == [False, True]
    newest = newest_verified(tmp_path)
    assert newest is not None and newest.step == 1


def test_a_list_notices_a_flipped_bit_in_a_file_that_it_has_hashed(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    assert list_checkpoints(tmp_path)[0].verified
    flip(folder / "training_state.json")
    assert not list_checkpoints(tmp_path)[0].verified


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 99}',
        json.dumps({"version": VERSION, "step": 1, "files": {}}).encode(),
        json.dumps({"version": VERSION, "step": 1, "files": {"../../etc/passwd": {"sha256": "x", "size": 1}}}).encode(),
        json.dumps({"version": VERSION, "step": 1, "files": {"/etc/passwd": {"sha256": "x", "size": 1}}}).encode(),
        json.dumps({"version": VERSION, "step": "1", "files": {"a": {"sha256": "x", "size": 1}}}).encode(),
        json.dumps({"version": VERSION, "step": 1, "files": {"a": {"size": "1"}}}).encode(),
        b'{"version": 1, "step": 1, "files": {"\\ud800": {"sha256": "x", "size": 1}}}',
        json.dumps({"version": VERSION, "step": 1, "files": {".": {"sha256": "x", "size": 1}}}).encode(),
        json.dumps({"version": VERSION, "step": 1, "files": {"a\0b": {"sha256": "x", "size": 1}}}).encode(),
        json.dumps({"version": VERSION, "step": 1, "files": {"a": {"sha256": "x", "size": True}}}).encode(),
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_an_invalid_manifest_is_reported_and_never_raised(tmp_path: Path, content: bytes) -> None:
    folder = make(tmp_path, 1)
    (folder / MANIFEST).write_bytes(content)
    assert len(verify(folder)) == len(verify_quickly(folder)) == 1
    assert list_checkpoints(tmp_path) == []


def test_verify_reports_a_missing_manifest(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    (folder / MANIFEST).unlink()
    assert verify(folder) == [f"checkpoint-1 has no {MANIFEST}."]


def test_the_web_reads_checkpoints_with_the_standard_library_alone() -> None:
    heavy = "('torch', 'safetensors', 'numpy', 'pydantic')"
    code = f"import sys, trainer_engine.contract.checkpoint_files; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


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


def evaluated(output_dir: Path, step: int, loss: float | None, measure: str = "ab") -> Path:
    return make(output_dir, step, evaluation={"loss": loss, "measure": measure, "datasets": ["held-out"]})


def best_step(output_dir: Path) -> int | None:
    best = best_of(list_checkpoints(output_dir))
    return best.step if best else None


def test_the_best_checkpoint_has_the_lowest_loss_and_is_the_earliest(tmp_path: Path) -> None:
    for step, loss in ((1, 0.5), (2, 0.3), (3, None), (4, 0.3), (5, 0.4)):
        evaluated(tmp_path, step, loss)
    make(tmp_path, 6)
    assert best_step(tmp_path) == 2


def test_checkpoints_without_evaluations_have_no_best_one(tmp_path: Path) -> None:
    make(tmp_path, 1)
    evaluated(tmp_path, 2, None)
    make(tmp_path, 3, evaluation={"loss": "low", "measure": "ab", "datasets": []})
    make(tmp_path, 4, evaluation=None)
    assert best_step(tmp_path) is None


def test_losses_of_another_measure_are_not_compared(tmp_path: Path) -> None:
    evaluated(tmp_path, 1, 0.1, "old")
    evaluated(tmp_path, 2, 0.5, "new")
    assert best_step(tmp_path) == 2


def test_a_broken_checkpoint_is_never_the_best(tmp_path: Path) -> None:
    (evaluated(tmp_path, 1, 0.1) / "transformer/weights.safetensors").unlink()
    evaluated(tmp_path, 2, 0.5)
    assert best_step(tmp_path) == 2


def test_the_best_file_names_the_checkpoint_and_is_removed_with_it(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["checkpoint-", "checkpoint--1", "checkpoint-1/..", "checkpoint-1\n", "checkpoint-1-rolling-2", ""])
def test_a_name_that_no_checkpoint_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a checkpoint"):
        step_of(name)


def test_a_folder_in_place_of_a_file_is_a_problem_of_that_file(tmp_path: Path) -> None:
    folder = make(tmp_path, 1)
    (folder / "training_state.json").unlink()
    (folder / "training_state.json").mkdir()
    (problem,) = verify(folder)
    assert problem.startswith("training_state.json ")
    assert newest_verified(tmp_path) is None

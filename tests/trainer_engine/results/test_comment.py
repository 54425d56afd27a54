"""The comment of a run in the header of the files that it writes."""

from __future__ import annotations

import json
import struct
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.tiny_run import train_here
from trainer_engine.adapters.base import ADAPTER_FILE
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.results.comment import KEY, write_comment

COMMENT = "step {current_step}, epoch {current_epoch}, by {env:SIMPLETUNER_COMMENT_LAB}"


def comment_in(path: Path) -> str | None:
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(KEY)


def test_checkpoints_and_result_of_an_adapter_have_the_comment_of_their_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPLETUNER_COMMENT_LAB", "the lab")
    options: dict[str, Any] = {"model_type": "lora", "lora_rank": 2, "max_train_steps": 6, "checkpoint_step_interval": 3, "use_ema": True}
    commented = {**options, "modelspec_comment": ["flowers", COMMENT], "output_dir": str(tmp_path / "commented")}
    run = train_here(tmp_path, **commented)
    last, first = (one.path / ADAPTER_FILE for one in list_checkpoints(run.output_dir))
    assert comment_in(first) == "flowers\nstep 3, epoch 1, by the lab"
    assert comment_in(last) == comment_in(run.output_dir / ADAPTER_FILE) == "flowers\nstep 6, epoch 2, by the lab"
    assert comment_in(run.output_dir / "ema" / ADAPTER_FILE) == comment_in(last)
    train_here(tmp_path, **{**commented, "output_dir": str(tmp_path / "resumed")}, stop_after=4)
    assert train_here(tmp_path, **{**commented, "output_dir": str(tmp_path / "resumed")}).files() == run.files()
    plain = train_here(tmp_path, **options, output_dir=str(tmp_path / "plain"))
    assert comment_in(plain.output_dir / ADAPTER_FILE) is None
    ours, theirs = (load_file(one.output_dir / ADAPTER_FILE) for one in (run, plain))
    assert all(ours[name].equal(tensor) for name, tensor in theirs.items())


def test_the_result_of_a_full_fine_tune_has_the_comment_and_loads(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    run = train_here(tmp_path, max_train_steps=2, modelspec_comment="{timestamp}, {env:SIMPLETUNER_COMMENT_NOBODY}.")
    folder = run.output_dir / "pipeline/transformer"
    comment = comment_in(folder / "diffusion_pytorch_model.safetensors") or ""
    stamp, _, rest = comment.partition(", ")
    assert before <= datetime.fromisoformat(stamp) <= datetime.now(timezone.utc) + timedelta(seconds=1) and rest == "."
    assert "comment_variable_missing" in [getattr(event, "code", "") for event in run.heard.events]
    trained = load_file(list_checkpoints(run.output_dir)[0].path / "transformer/diffusion_pytorch_model.safetensors")
    loaded = PixArtTransformer2DModel.from_pretrained(folder).state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in trained.items())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert comment_in(run.output_dir / "pipeline/vae/diffusion_pytorch_model.safetensors") is None


def test_a_file_keeps_its_tensors_and_its_other_metadata(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5, dtype=torch.float32), "b": torch.ones(3, 7, dtype=torch.bfloat16), "c": torch.zeros(0)}
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, {"format": "pt"})
    write_comment(tmp_path, "größer als \"vorher\"\n{'x': 1}")
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", KEY: "größer als \"vorher\"\n{'x': 1}"}
    assert all(load_file(path)[name].equal(tensor) for name, tensor in tensors.items())
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert length % 8 == 0 and json.loads(path.read_bytes()[8 : 8 + length])["a"]["shape"] == [5]


def test_without_a_comment_no_file_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2)}, path)
    before = path.stat()
    write_comment(tmp_path, "")
    assert path.stat().st_ino == before.st_ino and path.stat().st_mtime_ns == before.st_mtime_ns
    write_comment(tmp_path / "nowhere", "")  # which could not be written to the disk either

"""Qwen-Image 2.1 on several ranks, each of which passes several samples through the network in a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import files_of, run_of_ranks, train_here
from tests.trainer_engine.families.qwen_image_21.models import NAME

RESULT = "pipeline/transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.slow
def test_two_ranks_train_what_one_does_with_twice_the_batch_and_resume_exactly(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"model_family": NAME, "model": str(tiny_model(NAME)), "max_train_steps": 2, "model_type": "full"}
    usual |= {"caption_dropout_probability": 0.0, "learning_rate": 1e-3, "lr_warmup_steps": 0, "train_batch_size": 2}
    alone = train_here(tmp_path, **{**usual, "train_batch_size": 4}, output_dir=str(tmp_path / "alone"))
    found = {}
    for name, ends in (("straight", [2]), ("resumed", [1, 2])):
        for end in ends:
            options = {**usual, "max_train_steps": end, "output_dir": str(tmp_path / name), "resume_from_checkpoint": "latest"}
            run = run_of_ranks(tmp_path, f"run-{name}-{end}", **options)
        found[name] = files_of(run.newest_checkpoint().path)
    result, wanted = load_file(tmp_path / "straight" / RESULT), load_file(alone.output_dir / RESULT)
    assert result.keys() == wanted.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(result[key], tensor, rtol=1e-3, atol=1e-4)
    same = {file for file in found["straight"] if file.endswith(".safetensors")}
    assert same and {file for file in same if found["straight"][file] != found["resumed"][file]} == set()

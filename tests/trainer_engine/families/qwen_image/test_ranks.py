"""Two ranks train Qwen-Image as one does: no gradient is waited for that never comes, and a resumed run writes the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.models import tiny_model
from tests.helpers.tiny_run import files_of, run_of_ranks, train_here
from trainer_engine.families.qwen_image.spec import SPEC

RESULTS = {"full": "pipeline/transformer/diffusion_pytorch_model.safetensors", "lycoris": "pytorch_lora_weights.safetensors"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", RESULTS)
def test_two_ranks_train_what_one_does_with_twice_the_batch_and_resume_exactly(tmp_path: Path, kind: str) -> None:
    usual: dict[str, Any] = {"model_family": "qwen_image", "model": str(tiny_model("qwen_image")), "max_train_steps": 4}
    usual |= {"caption_dropout_probability": 0.0, "learning_rate": 1e-3, "lr_warmup_steps": 0}
    if kind == "lycoris":  # it is on the feed-forward layers of the last block as well
        config = tmp_path / "lycoris.json"
        config.write_text(json.dumps(dict(SPEC.adapters.lycoris_start) | {"factor": 4}, default=dict))
        usual |= {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(config)}
    alone = train_here(tmp_path, **usual, train_batch_size=2, output_dir=str(tmp_path / "alone"))
    found = {}
    for name, ends in (("straight", [4]), ("resumed", [2, 4])):
        for end in ends:
            options = {**usual, "max_train_steps": end, "output_dir": str(tmp_path / name), "resume_from_checkpoint": "latest"}
            run = run_of_ranks(tmp_path, f"run-{name}-{end}", **options)
        found[name] = files_of(run.newest_checkpoint().path)
        result, wanted = load_file(tmp_path / name / RESULTS[kind]), load_file(alone.output_dir / RESULTS[kind])
        assert result.keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(result[key], tensor, rtol=1e-3, atol=1e-4)
    same = {file for file in found["straight"] if file.endswith(".safetensors")}
    assert same and {file for file in same if found["straight"][file] != found["resumed"][file]} == set()

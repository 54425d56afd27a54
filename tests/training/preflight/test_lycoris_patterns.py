"""A pattern that never ends costs its own request two seconds, and the server nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Training
from trainer_engine.config.lycoris import patterns

NEVER_ENDING = "([a-z_.0-9]+)+!$"
LAYER = "transformer_blocks.0.attn_of_the_first_block.to_q"


def with_layer(model: Path) -> None:
    header = json.dumps({f"{LAYER}.weight": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(256)
    (model / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(content)


def verdict(training: Training, path: str, **preset: Any) -> tuple[int, list[tuple[str, str]]]:
    with_layer(training.home / "model")
    adapter = {"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1, "apply_preset": preset}
    (training.home / "config" / "lycoris.json").write_text(json.dumps(adapter))
    answer = training.post(
        path, {**training.form, "--model_type": "lora", "--lora_type": "lycoris", "--lycoris_config": "config/lycoris.json"}
    )
    return answer.status_code, [(one["option"], one["code"]) for one in answer.json().get("problems", [])]


@pytest.mark.parametrize(("path", "key"), [("/validate", "target_name"), ("/start", "exclude_name")])
def test_a_pattern_that_never_ends_is_refused_by_name(training: Training, path: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "CPU_SECONDS", 1)
    refused = verdict(training, path, **{key: [NEVER_ENDING]})
    assert refused == (422, [(f"lycoris_config.apply_preset.{key}", "pattern_too_slow")])


def test_patterns_see_the_names_in_the_weights(training: Training) -> None:
    assert verdict(training, "/validate", target_name=[LAYER, r"transformer_blocks\.\d+\.attn.*"]) == (200, [])
    assert verdict(training, "/validate", target_name=["*.to_q"], use_fnmatch=True) == (200, [])
    refused = verdict(training, "/validate", target_name=["nowhere.*"])
    assert refused == (422, [("lycoris_config.apply_preset.target_name", "nothing_matched")])

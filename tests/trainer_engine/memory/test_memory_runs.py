"""Whole runs: what waits on the host changes no byte of a checkpoint and no image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_same_checkpoints
from tests.helpers.tiny_run import HereRun, run_of_ranks, train_here
from trainer_engine.contract.events import ProgressEvent

LORA = {"model_type": "lora", "lora_rank": 2, "max_train_steps": 3, "gradient_accumulation_steps": 2}
IMAGES = {
    "validation_disable": False,
    "validation_prompt": "a picture",
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
    "validation_step_interval": 2,
    "validation_guidance": 3.0,
}
STREAMED: list[dict[str, Any]] = [
    {"musubi_blocks_to_swap": 1},
    {"musubi_blocks_to_swap": 2, "gradient_checkpointing": True, "gradient_checkpointing_backend": "unsloth"},
    {"enable_group_offload": True, "group_offload_text_encoder": True},
    {"ramtorch": True, "ramtorch_text_encoder": True, "gradient_checkpointing": True},
]


def trained(place: Path, name: str, **options: Any) -> HereRun:
    run = train_here(place, output_dir=str(place / name), **options)
    assert run.code == 0
    return run


def images_of(run: HereRun) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.output_dir / "validation_images").iterdir()}


@pytest.mark.parametrize("memory", STREAMED, ids=lambda memory: ",".join(memory))
def test_streamed_weights_change_neither_checkpoint_nor_image(tmp_path: Path, memory: dict[str, Any]) -> None:
    plain = trained(tmp_path, "plain", **LORA, **IMAGES)
    other = trained(tmp_path, "other", **LORA, **IMAGES, **memory)
    assert_same_checkpoints(plain, other)
    assert images_of(plain) == images_of(other) and len(images_of(plain)) >= 2


@pytest.mark.parametrize("algorithm", ["lokr", "loha", "full", "dylora"])
def test_every_kind_of_lycoris_adapter_can_lie_on_streamed_weights(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "lycoris_config.json"
    preset = {"target_module": ["Attention", "FeedForward"]}
    path.write_text(json.dumps({"algo": algorithm, "multiplier": 1.0, "linear_dim": 4, "linear_alpha": 1, "apply_preset": preset}))
    usual = {**LORA, "lora_type": "lycoris", "lycoris_config": str(path)}
    plain = trained(tmp_path, "plain", **usual)
    for number, memory in enumerate(({"musubi_blocks_to_swap": 2}, {"ramtorch": True, "gradient_checkpointing": True})):
        assert_same_checkpoints(plain, trained(tmp_path, f"other-{number}", **usual, **memory))


def test_dora_reads_the_norms_of_streamed_weights(tmp_path: Path) -> None:
    usual = {**LORA, "use_dora": True}
    plain = trained(tmp_path, "plain", **usual)
    assert_same_checkpoints(plain, trained(tmp_path, "other", **usual, ramtorch=True))
    assert_same_checkpoints(plain, trained(tmp_path, "third", **usual, musubi_blocks_to_swap=2, gradient_checkpointing=True))


def test_recomputing_from_the_host_changes_no_byte_of_a_full_fine_tune(tmp_path: Path) -> None:
    usual = {"max_train_steps": 2, "use_ema": True}
    memory = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_backend": "unsloth-ffn",
        "gradient_checkpointing_offload_attention": True,
        "gradient_checkpointing_offload_prefetch": True,
    }
    assert_same_checkpoints(trained(tmp_path, "plain", **usual), trained(tmp_path, "other", **usual, **memory))


def test_an_average_and_an_evaluation_see_streamed_weights(tmp_path: Path) -> None:
    usual = {**LORA, "use_ema": True}
    assert_same_checkpoints(trained(tmp_path, "plain", **usual), trained(tmp_path, "other", **usual, musubi_blocks_to_swap=2))


@pytest.mark.parametrize("memory", first_fast([{"musubi_blocks_to_swap": 2}, {"ramtorch": True, "gradient_checkpointing": True}]))
def test_two_processes_with_streamed_weights_train_what_one_does(tmp_path: Path, memory: dict[str, Any]) -> None:
    usual = {"model_type": "lora", "lora_rank": 2, "lora_dropout": 0.0, "max_train_steps": 3}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), train_batch_size=2, **usual)
    together = run_of_ranks(tmp_path, **usual, **memory)
    losses = [event.loss for event in alone.heard.of(ProgressEvent)]
    assert [entry.data["loss"] for entry in together.of_type("training.progress")] == pytest.approx(losses, rel=1e-5)

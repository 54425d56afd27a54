"""A run that was stopped and goes on ends with the same bytes as one that was never stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.helpers.models import tiny_model
from tests.helpers.params import first_fast
from tests.helpers.pictures import generate_images
from tests.helpers.resuming import assert_same_checkpoints
from tests.helpers.tiny_run import HereRun, tiny_datasets, train_here
from trainer_engine.config.optimizers import OPTIMIZERS
from trainer_engine.config.resuming.identity import ORDER_KEY, ORDER_VERSION
from trainer_engine.contract.checkpoint_files import MANIFEST, STATE_FILE, list_checkpoints
from trainer_engine.contract.errors import CheckpointUnusable, ExitCode
from trainer_engine.contract.events import CheckpointEvent, Notification, ProgressEvent, SummaryEvent
from trainer_engine.optim.lr_schedules import CURVES

STEPS = 6
RECOMPUTED = {"gradient_checkpointing": True}
USUAL: dict[str, Any] = {"max_train_steps": STEPS, "lr_warmup_steps": 2, "lr_end": 1e-5}


def straight(place: Path, **options: Any) -> HereRun:
    return train_here(place, output_dir=str(place / "straight"), **(USUAL | options))


def interrupted(place: Path, after: int, *, later: dict[str, Any] | None = None, **options: Any) -> HereRun:
    values = {**USUAL, **options, "output_dir": str(place / "interrupted")}
    first = train_here(place, stop_after=after, **values)
    assert (first.code, first.step) == (ExitCode.STOPPED, after)
    return train_here(place, **(values | (later or {})))


PAIRWISE = [(1, False, False), (1, True, True), (2, False, True), (2, True, False)]
"""Every two values of accumulation, reading ahead and averaging meet in one of these; the other four are slow tests."""


@pytest.mark.parametrize(
    ("accumulation", "prefetch", "use_ema"),
    [
        pytest.param(*one, marks=() if one in PAIRWISE else pytest.mark.slow)
        for one in itertools.product((1, 2), (False, True), (False, True))
    ],
)
def test_stopping_changes_no_byte(tmp_path: Path, accumulation: int, prefetch: bool, use_ema: bool) -> None:
    options = {"gradient_accumulation_steps": accumulation, "dataloader_prefetch": prefetch, "use_ema": use_ema}
    whole = straight(tmp_path, **options)
    assert whole.code is ExitCode.COMPLETED
    for after in (1, 4):
        assert_same_checkpoints(whole, interrupted(tmp_path, after, **options))
        shutil.rmtree(tmp_path / "interrupted")


ON_A_CPU = sorted(row.name for row in OPTIMIZERS.values() if not row.needs_gpu)
KINDS = ("full", "standard", "dora", "lokr", "loha")
PAIRS = [
    *((optimizer, "cosine", "full") for optimizer in list(ON_A_CPU)[::3]),
    *(("torch-adamw", schedule, "full") for schedule in ("constant_with_warmup", "sine")),
    *(("optimi-lion", "cosine", kind) for kind in KINDS[1:]),
    ("adamw_schedulefree", "cosine", "standard"),
]
"""Some optimizers and schedules, and every kind of adapter; each with each of the others takes longer."""
ALL = [(optimizer, schedule, kind) for optimizer in ON_A_CPU for schedule in sorted(CURVES) for kind in KINDS]


def trained_as(kind: str, place: Path) -> dict[str, Any]:
    """Options of a full fine-tune or of an adapter."""
    if kind == "full":
        return {}
    if kind in ("standard", "dora"):
        return {"model_type": "lora", "lora_rank": 2, "use_dora": kind == "dora"}
    path = place / "lycoris_config.json"
    preset = {"target_module": ["Attention", "FeedForward"]}
    path.write_text(json.dumps({"algo": kind, "multiplier": 1.0, "linear_dim": 2, "linear_alpha": 1, "apply_preset": preset}))
    return {"model_type": "lora", "lora_type": "lycoris", "lycoris_config": str(path)}


@pytest.mark.parametrize(
    ("optimizer", "schedule", "kind"),
    [*PAIRS, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in PAIRS)],
)
def test_every_optimizer_schedule_and_adapter_resumes_exactly(tmp_path: Path, optimizer: str, schedule: str, kind: str) -> None:
    options = {"optimizer": optimizer, "lr_scheduler": schedule, "lr_num_cycles": 2, **trained_as(kind, tmp_path)}
    assert_same_checkpoints(straight(tmp_path, **options), interrupted(tmp_path, 3, **options))


@pytest.mark.parametrize(
    "options",
    first_fast(
        [
            {"optimizer": "adamw_bf16", "mixed_precision": "bf16", "use_ema": True},
            {"model_type": "lora", "gradient_checkpointing_offload_attention": True, "ramtorch": True},
            {"optimizer_cpu_offload_method": "torchao", "optimizer_offload_gradients": True, "gradient_accumulation_steps": 2},
            {"optimizer": "optimi-adamw", "optimizer_release_gradients": True, "grad_clip_method": "value", "max_grad_norm": 0.01},
            {"use_ema": True, "ema_warmup_steps": 4, "ema_foreach_disable": True, "ema_device": "accelerator"},
            {"optimizer": "prodigy", "learning_rate": 1.0, "prodigy_steps": 2},
            {"optimizer": "torch-adamw", "mixed_precision": "bf16"},
            RECOMPUTED,
            {**RECOMPUTED, "gradient_checkpointing_interval": 2, "gradient_checkpointing_backend": "unsloth"},
            {**RECOMPUTED, "model_type": "lora", "gradient_checkpointing_backend": "torch-ffn", "musubi_blocks_to_swap": 1},
            {"model_type": "lora", "enable_group_offload": True, "group_offload_type": "leaf_level", "group_offload_use_stream": True},
            {"optimizer": "torch-sgd", "fuse_optimizer": True},
            {"grad_clip_method": "value", "max_grad_norm": 0.001},
            {"max_grad_norm": 0},
            {"use_ema": True, "ema_update_interval": 4},
            {"prediction_type": "v_prediction"},
            {"optimizer": "adamw_bf16", "mixed_precision": "bf16", "gradient_precision": "fp32", "gradient_accumulation_steps": 2},
        ],
        6,
    ),
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_other_ways_to_train_resume_exactly_too(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_same_checkpoints(straight(tmp_path, **options), interrupted(tmp_path, 3, **options))


def place_in_mapping(content: bytes) -> int:
    """Where the first matrix of a safetensors file begins, beside the lines of memory that a kernel reads at once."""
    return (8 + int.from_bytes(content[:8], "little")) % 64


def test_a_run_from_weights_that_another_program_wrote_resumes_exactly(tmp_path: Path) -> None:
    """Their header has another length than that of a checkpoint, so that every matrix begins elsewhere when the file is mapped."""
    model = shutil.copytree(tiny_model("kandinsky5_image"), tmp_path / "model")
    file = model / "transformer/diffusion_pytorch_model.safetensors"
    for length in range(0, 64, 8):
        save_file(load_file(file), file, metadata={"format": "pt", "written by": "x" * length})
        if place_in_mapping(file.read_bytes()) == 0:
            break
    options = {"model_family": "kandinsky5_image", "model": str(model)}
    whole, resumed = straight(tmp_path, **options), interrupted(tmp_path, 3, **options)
    assert place_in_mapping(resumed.weights()) != place_in_mapping(file.read_bytes()) == 0
    assert_same_checkpoints(whole, resumed)


def test_reading_ahead_may_be_turned_on_in_between(tmp_path: Path) -> None:
    assert_same_checkpoints(straight(tmp_path), interrupted(tmp_path, 2, later={"dataloader_prefetch": True}))


def test_validation_images_in_between_change_no_byte(tmp_path: Path) -> None:
    drawing = {"validation_disable": False, "validation_resolution": "64x64", "validation_num_inference_steps": 1}
    whole = straight(tmp_path, use_ema=True)
    drawn = train_here(tmp_path, output_dir=str(tmp_path / "drawn"), validation_step_interval=2, use_ema=True, **(USUAL | drawing))
    assert_same_checkpoints(whole, drawn)


def test_a_run_repeats_exactly_and_another_seed_gives_another_run(tmp_path: Path) -> None:
    first, again = straight(tmp_path), train_here(tmp_path, output_dir=str(tmp_path / "again"), **USUAL)
    assert_same_checkpoints(first, again)
    other = train_here(tmp_path, output_dir=str(tmp_path / "other"), **(USUAL | {"seed": 8}))
    assert first.weights() != other.weights()


def test_the_step_count_continues(tmp_path: Path) -> None:
    later = interrupted(tmp_path, 4)
    assert [event.step for event in later.heard.of(ProgressEvent)] == [5, 6]
    assert later.heard.of(SummaryEvent)[0].steps == STEPS
    assert [event.step for event in later.heard.of(CheckpointEvent) if event.is_final] == [STEPS]


def codes(run: HereRun) -> list[str]:
    return [event.code for event in run.heard.of(Notification)]


def test_a_finished_run_has_nothing_left_to_train(tmp_path: Path) -> None:
    straight(tmp_path)
    again = straight(tmp_path)
    assert (again.code, again.step) == (ExitCode.COMPLETED, STEPS)
    assert "already_finished" in codes(again) and again.heard.of(ProgressEvent) == []


def test_a_finished_run_whose_result_is_missing_writes_it(tmp_path: Path) -> None:
    straight(tmp_path)
    shutil.rmtree(tmp_path / "straight/pipeline")
    straight(tmp_path)
    assert (tmp_path / "straight/pipeline/model_index.json").is_file()


def test_a_longer_run_continues_a_finished_one(tmp_path: Path) -> None:
    straight(tmp_path)
    longer = straight(tmp_path, max_train_steps=STEPS + 2)
    assert [event.step for event in longer.heard.of(ProgressEvent)] == [STEPS + 1, STEPS + 2]


def test_latest_skips_a_broken_checkpoint_and_names_it(tmp_path: Path) -> None:
    options = {"checkpoint_step_interval": 2, "use_ema": True}
    whole = straight(tmp_path, **options)
    (tmp_path / "straight/checkpoint-6/optimizer.safetensors").write_bytes(b"")
    again = straight(tmp_path, **options)
    told = next(event for event in again.heard.of(Notification) if event.code == "checkpoint_broken")
    assert "checkpoint-6" in told.message
    assert [event.step for event in again.heard.of(ProgressEvent)] == [5, 6]
    assert_same_checkpoints(whole, again)


def test_a_name_resumes_from_the_checkpoint_of_that_name(tmp_path: Path) -> None:
    straight(tmp_path, checkpoint_step_interval=2)
    again = straight(tmp_path, resume_from_checkpoint="checkpoint-2")
    assert [event.step for event in again.heard.of(ProgressEvent)] == [3, 4, 5, 6]


def test_an_unknown_name_ends_the_run_with_the_names_that_exist(tmp_path: Path) -> None:
    straight(tmp_path)
    with pytest.raises(CheckpointUnusable) as raised:
        straight(tmp_path, resume_from_checkpoint="checkpoint-5")
    assert "checkpoint-6" in raised.value.hint


def test_an_empty_name_is_a_fresh_start(tmp_path: Path) -> None:
    straight(tmp_path)
    again = straight(tmp_path, resume_from_checkpoint="")
    assert len(again.heard.of(ProgressEvent)) == STEPS


def test_a_fresh_start_moves_the_old_checkpoints_away_from_latest(tmp_path: Path) -> None:
    old = straight(tmp_path)
    weights = old.weights()
    fresh = straight(tmp_path, resume_from_checkpoint="", stop_after=2, seed=8, checkpoints_total_limit=1)
    assert "set_aside" in codes(fresh) and [info.step for info in list_checkpoints(fresh.output_dir)] == [2]
    again = straight(tmp_path, seed=8)
    assert [event.step for event in again.heard.of(ProgressEvent)] == [3, 4, 5, 6] and "set_aside" not in codes(again)
    (kept,) = tmp_path.glob("straight/earlier-*/checkpoint-6/transformer/diffusion_pytorch_model.safetensors")
    assert kept.read_bytes() == weights != again.weights()


def test_latest_without_a_checkpoint_is_a_fresh_start_with_a_note(tmp_path: Path) -> None:
    assert "fresh_start" in codes(straight(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "optimi-adamw"}, "optimizer was torch-adamw"),
        ({"mixed_precision": "bf16", "optimizer": "adamw_bf16"}, "weights was float32"),
        ({"prediction_type": "v_prediction"}, "prediction_type was epsilon"),
        ({"use_ema": True}, "use_ema was False"),
        ({"seed": 8}, "seed was 7 and is 8"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is 2"),
        ({"train_batch_size": 4}, "samples in a pass was 2 and is 4"),
    ],
)
def test_resuming_another_run_is_refused_with_what_differs(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    straight(tmp_path)
    with pytest.raises(CheckpointUnusable, match=said):
        straight(tmp_path, max_train_steps=STEPS + 1, **changes)


def test_a_changed_dataset_is_refused_with_the_files(tmp_path: Path) -> None:
    straight(tmp_path)
    generate_images(tmp_path / "images/more", count=2, size=(96, 96))
    with pytest.raises(CheckpointUnusable, match=r"dataset pictures: 2 added \(more/"):
        straight(tmp_path, max_train_steps=STEPS + 1)
    longer = straight(tmp_path, max_train_steps=STEPS + 1, i_know_what_i_am_doing=True)
    assert longer.step == STEPS + 1 and "data_changed" in codes(longer)


def test_a_changed_number_of_repeats_is_a_changed_dataset(tmp_path: Path) -> None:
    straight(tmp_path)
    with pytest.raises(CheckpointUnusable, match="8 changed"):
        straight(tmp_path, max_train_steps=STEPS + 1, datasets=tiny_datasets(tmp_path, repeats=3))


def test_the_state_records_the_position_of_the_run(tmp_path: Path) -> None:
    run = straight(tmp_path)
    state = json.loads((list_checkpoints(run.output_dir)[0].path / "training_state.json").read_text())
    assert state["step"] == STEPS and state["position"] == {"epoch": 1, "index": 2}


def test_a_checkpoint_of_another_order_of_samples_resumes_with_a_warning(tmp_path: Path) -> None:
    values = {**USUAL, "output_dir": str(tmp_path / "older")}
    train_here(tmp_path, stop_after=2, **values)
    folder = list_checkpoints(tmp_path / "older")[0].path
    state = json.loads((folder / STATE_FILE).read_bytes())
    assert state.pop(ORDER_KEY) == ORDER_VERSION
    content = json.dumps(state).encode()
    (folder / STATE_FILE).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"][STATE_FILE] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    resumed = train_here(tmp_path, **values)
    assert resumed.code is ExitCode.COMPLETED
    (warning,) = [event for event in resumed.heard.of(Notification) if event.code == "order_changed"]
    assert "some samples are seen twice" in warning.message
    again = train_here(tmp_path, **(values | {"max_train_steps": STEPS + 1}))
    assert [event for event in again.heard.of(Notification) if event.code == "order_changed"] == []


@pytest.mark.parametrize(
    "change",
    [{"loss": "x"}, {"schedule": {}}, {"schedule": 5}, {"loss": []}],
    ids=str,
)
def test_a_training_state_of_another_form_is_refused_as_unusable(tmp_path: Path, run_of_two_steps: Path, change: dict[str, Any]) -> None:
    shutil.copytree(run_of_two_steps, tmp_path / "output")
    folder = tmp_path / "output/checkpoint-2"
    state = json.loads((folder / STATE_FILE).read_bytes())
    content = json.dumps({**state, **change}).encode()
    (folder / STATE_FILE).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["files"][STATE_FILE] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointUnusable, match="checkpoint-2 does not fit this run"):
        train_here(tmp_path, datasets=tiny_datasets(run_of_two_steps.parent), **(USUAL | {"max_train_steps": 4}))


@pytest.fixture(scope="module")
def run_of_two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("two")
    return train_here(place, **(USUAL | {"max_train_steps": 2})).output_dir

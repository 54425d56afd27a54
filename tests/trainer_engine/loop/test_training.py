"""Checkpoints, logs and endings of a run, in this process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.tiny_run import HereRun, tiny_datasets, train_here
from trainer_engine.contract.checkpoint_files import list_checkpoints, verify
from trainer_engine.contract.errors import DatasetUnusable, DiskFull, ExitCode, InvalidOptions, NonFiniteLoss, OutOfMemory
from trainer_engine.contract.events import (
    CheckpointEvent,
    ErrorEvent,
    ImageEvent,
    Notification,
    ProgressEvent,
    StageEvent,
    StageStatus,
    StatusEvent,
    SummaryEvent,
)
from trainer_engine.datasets.timeline import TimedSet, Timeline
from trainer_engine.loop.callbacks.memory import MemoryCallback, in_words
from trainer_engine.loop.state import StepOutcome, TrainState
from trainer_engine.objectives.diffusion import Diffusion

DRAWING = {"validation_disable": False, "validation_resolution": "64x64", "validation_num_inference_steps": 2, "validation_prompt": "a cat"}


def stages(run: HereRun) -> list[str]:
    return [event.key.value for event in run.heard.of(StageEvent) if event.status is StageStatus.COMPLETED]


def steps_saved(run: HereRun) -> list[int]:
    return [event.step for event in run.heard.of(CheckpointEvent)]


def test_a_run_emits_its_events_in_order(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=2, **DRAWING)
    assert run.code is ExitCode.COMPLETED
    assert stages(run) == [
        "init_load_base_model",
        "init_resume_checkpoint",
        "init_data_backend",
        "init_text_embed_cache",
        "init_vae_cache",
        "init_prepare_models",
        "benchmark_base_model",
        "checkpoint_save",
        "final_validation",
        "model_save",
        "training_complete",
    ]
    assert [event.status for event in run.heard.of(StatusEvent)] == ["running"]


def test_every_step_is_an_event(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=5, lr_scheduler="linear", lr_end=0.0, learning_rate=1e-3)
    told = run.heard.of(ProgressEvent)
    assert [event.step for event in told] == [1, 2, 3, 4, 5]
    assert [event.epoch for event in told] == [1, 1, 1, 1, 2]
    assert [event.learning_rate for event in told] == pytest.approx([8e-4, 6e-4, 4e-4, 2e-4, 0])
    for event in told:
        assert event.loss and event.grad_norm and math.isfinite(event.loss) and event.grad_norm > 0
        assert event.memory["resident"] > 10_000_000 and event.samples_per_second > 0 and event.total_steps == 5
    assert told[-1].eta_seconds == 0


def test_a_scaled_rate_grows_with_the_samples_of_a_step(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=2, learning_rate=1e-4, gradient_accumulation_steps=2, lr_scale=True)
    assert [event.learning_rate for event in run.heard.of(ProgressEvent)] == pytest.approx([4e-4, 4e-4])


def test_epochs_give_the_length(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=0, num_train_epochs=3)
    assert run.step == 12


def test_checkpoints_are_saved_at_the_interval_and_at_the_end_and_the_oldest_go(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=7, checkpoint_step_interval=2, checkpoints_total_limit=2)
    assert steps_saved(run) == [2, 4, 6, 7]
    assert [event.is_final for event in run.heard.of(CheckpointEvent)] == [False, False, False, True]
    kept = list_checkpoints(run.output_dir)
    assert [info.step for info in kept] == [7, 6]
    assert all(verify(info.path) == [] for info in kept)


def test_checkpoints_are_saved_at_the_end_of_epochs(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=0, num_train_epochs=4, checkpoint_epoch_interval=2)
    assert steps_saved(run) == [8, 16]


def test_the_end_of_a_run_does_not_save_a_step_twice(tmp_path: Path) -> None:
    assert steps_saved(train_here(tmp_path, max_train_steps=4, checkpoint_step_interval=2)) == [2, 4]


def test_images_are_generated_before_at_the_interval_and_after(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=5, validation_step_interval=2, **DRAWING)
    told = run.heard.of(ImageEvent)
    assert [(event.global_step, event.validation_type) for event in told[::2]] == [
        (0, "base_model"),
        (2, "final"),
        (4, "final"),
        (5, "final"),
    ]
    assert told[1].title == "Validation (step 2/2): validation" and told[1].body == "a cat" and told[1].resolution == (64, 64)
    assert all(Path(event.images[0].file).is_file() for event in told)
    assert Path(told[-1].images[0].file).name == "step_5_validation_0_64x64.png"


@pytest.mark.parametrize(("wanted", "names"), [("comparison", ["", "_ema"]), ("ema_only", ["_ema"]), ("none", [""])])
def test_the_average_generates_images_as_the_option_asks(tmp_path: Path, wanted: str, names: list[str]) -> None:
    options = DRAWING | {"validation_disable_unconditional": True, "disable_benchmark": True}
    run = train_here(tmp_path, max_train_steps=2, use_ema=True, ema_validation=wanted, **options)
    drawn = [Path(event.images[0].file).name for event in run.heard.of(ImageEvent)]
    assert drawn == [f"step_2_validation{name}_0_64x64.png" for name in names]


def test_the_result_holds_the_trained_network_and_the_average(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=3, use_ema=True)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    newest = list_checkpoints(run.output_dir)[0].path
    assert (run.output_dir / "pipeline" / weights).read_bytes() == (newest / weights).read_bytes()
    averaged, saved = load_file(run.output_dir / "pipeline_ema" / weights), load_file(newest / "ema/weights.safetensors")
    assert all(torch.equal(averaged[name], saved[name]) for name in saved)
    summary = run.heard.of(SummaryEvent)[0]
    assert set(summary.artefacts) == {"checkpoint", "pipeline", "pipeline_ema"}
    assert {"data_wait", "step", "checkpoint"} <= set(summary.time_split)
    assert summary.final_loss == run.heard.of(ProgressEvent)[-1].loss


def test_a_stopped_run_has_no_result_but_a_checkpoint(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=50, stop_after=3)
    assert (run.code, run.step) == (ExitCode.STOPPED, 3)
    assert steps_saved(run) == [3] and not (run.output_dir / "pipeline").exists()
    assert [event.status for event in run.heard.of(StatusEvent)] == ["running", "stopping"]
    assert run.heard.of(SummaryEvent)[0].artefacts == {"checkpoint": str(run.output_dir / "checkpoint-3")}


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"mixed_precision": "no", "optimizer": "torch-adamw"}, torch.float32),
        ({"mixed_precision": "no", "optimizer": "adamw_bf16"}, torch.float32),
        ({"mixed_precision": "bf16", "optimizer": "adamw_bf16"}, torch.bfloat16),
        ({"mixed_precision": "bf16", "optimizer": "torch-adamw"}, torch.float32),
        ({"mixed_precision": "no", "base_model_precision": "bf16"}, torch.float32),
    ],
)
def test_weights_are_saved_in_the_type_they_are_trained_in(tmp_path: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    run = train_here(tmp_path, max_train_steps=2, **options)
    saved = load_file(run.output_dir / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {dtype}
    noted = any("plain AdamW" in event.message for event in run.heard.of(Notification))
    assert noted is (options["optimizer"] == "adamw_bf16" and dtype == torch.float32) if "optimizer" in options else True


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InvalidOptions, match="needs a GPU"):
        train_here(tmp_path, mixed_precision="fp16")


def test_a_broken_image_is_left_out_and_named(tmp_path: Path) -> None:
    datasets = tiny_datasets(tmp_path, images=12)
    (tmp_path / "images/broken.png").write_bytes(b"\x89PNG nothing")
    run = train_here(tmp_path, max_train_steps=2, datasets=datasets)
    (told,) = [event for event in run.heard.of(Notification) if event.code == "files_left_out"]
    assert "broken.png" in told.message


def test_a_dataset_without_images_ends_the_run(tmp_path: Path) -> None:
    datasets = tiny_datasets(tmp_path)
    for path in (tmp_path / "images").rglob("*.*"):
        path.unlink()
    with pytest.raises(DatasetUnusable):
        train_here(tmp_path, datasets=datasets)


@pytest.fixture
def poisoned_noise(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Latents of chosen calls come out as NaN, as a broken file or an overflow would make them."""
    calls = {"count": 0, "from": 0, "to": 0}
    real = Diffusion.add_noise

    def add_noise(self: Diffusion, data: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls["count"] += 1
        noisy = real(self, data, noise, t)
        return noisy * float("nan") if calls["from"] <= calls["count"] <= calls["to"] else noisy

    monkeypatch.setattr(Diffusion, "add_noise", add_noise)
    return calls


def test_a_step_that_is_not_finite_is_skipped_and_its_samples_are_named(tmp_path: Path, poisoned_noise: dict[str, int]) -> None:
    poisoned_noise.update({"from": 3, "to": 3})
    run = train_here(tmp_path, max_train_steps=5)
    assert run.code is ExitCode.COMPLETED
    (told,) = run.heard.of(ErrorEvent)
    assert told.code == "non_finite_step" and told.details["step"] == 3 and len(told.details["samples"]) == 2
    assert all(Path(sample["file"]).is_file() and 0 <= sample["timestep"] < 1000 for sample in told.details["samples"])
    saved = load_file(run.output_dir / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())


def test_only_the_micro_batch_that_was_not_finite_is_named(tmp_path: Path, poisoned_noise: dict[str, int]) -> None:
    poisoned_noise.update({"from": 2, "to": 2})
    run = train_here(tmp_path, max_train_steps=2, gradient_accumulation_steps=2)
    assert len(run.heard.of(ErrorEvent)[0].details["samples"]) == 2


def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(tmp_path: Path, poisoned_noise: dict[str, int]) -> None:
    poisoned_noise.update({"from": 4, "to": 5})
    run = train_here(tmp_path, max_train_steps=5, checkpoint_step_interval=3)
    before, after = (run.output_dir / f"checkpoint-{step}" for step in (3, 5))
    for name in ("transformer/diffusion_pytorch_model.safetensors", "optimizer.safetensors"):
        assert (before / name).read_bytes() == (after / name).read_bytes()


def test_three_non_finite_steps_in_a_row_end_the_run_and_keep_the_checkpoints(tmp_path: Path, poisoned_noise: dict[str, int]) -> None:
    poisoned_noise.update({"from": 4, "to": 99})
    with pytest.raises(NonFiniteLoss, match=r"3 steps in a row .* Step 6 was skipped"):
        train_here(tmp_path, max_train_steps=20, checkpoint_step_interval=2)
    kept = list_checkpoints(tmp_path / "output")
    assert [info.step for info in kept] == [4, 2] and all(verify(info.path) == [] for info in kept)


def test_memory_that_runs_out_ends_the_run_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Diffusion, "add_noise", full)
    with pytest.raises(OutOfMemory, match=r"20.00 GiB") as raised:
        train_here(tmp_path)
    assert "train_batch_size" in raised.value.hint


def test_a_disk_without_space_for_a_checkpoint_ends_the_run_and_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_here(tmp_path, max_train_steps=2)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("trainer_engine.checkpointing.save.shutil.disk_usage", lambda _: usage)
    with pytest.raises(DiskFull):
        train_here(tmp_path, max_train_steps=4)
    assert [info.step for info in list_checkpoints(tmp_path / "output")] == [2]


def test_the_loss_falls(tmp_path: Path) -> None:
    run = train_here(tmp_path, max_train_steps=60, learning_rate=5e-3, caption_dropout_probability=0.0, max_grad_norm=0)
    losses = [event.loss or 0.0 for event in run.heard.of(ProgressEvent)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_measured_peak_is_reported_beside_the_estimate(tmp_path: Path) -> None:
    run = train_here(tmp_path)
    (summary,) = run.heard.of(SummaryEvent)
    # A process that held more before, for an earlier test, need not grow: what it says is what it measured.
    assert summary.memory["peak_bytes"] >= 0
    assert summary.message.endswith(in_words(summary.memory))
    state, watch = (
        TrainState(total_steps=1, timeline=Timeline((TimedSet("a", (1,), 1.0),), 1, 0, by_size=True)),
        MemoryCallback(torch.device("cpu"), 0, {}),
    )
    watch.after_step(state, StepOutcome(1.0, (1.0,), 1.0, 1e-4, 1, taken=True))
    watch.after_training(state)
    assert "At its peak it took" in in_words(state.memory)
    expected = {
        "peak_bytes": 2_000_000_000,
        "estimated_bytes": 1_900_000_000,
        "estimated_low_bytes": 10**9,
        "estimated_high_bytes": 3 * 10**9,
    }
    assert in_words(expected) == " At its peak it took 2.00 GB of memory; 1.90 GB were expected (1.00 to 3.00)."
    assert in_words({}) == ""

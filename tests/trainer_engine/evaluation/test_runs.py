"""Whole runs with held-out images: what they measure, what they leave, and that training does not feel it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.params import first_fast
from tests.helpers.tiny_run import HereRun, train_here, with_held_out
from trainer_engine.contract import commands
from trainer_engine.contract.best_checkpoint import BEST_FILE, best_of
from trainer_engine.contract.checkpoint_files import list_checkpoints
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import (
    ErrorEvent,
    ImageEvent,
    Notification,
    ProgressEvent,
    StageEvent,
    StageKey,
    SummaryEvent,
)
from trainer_engine.contract.run import RunFolder
from trainer_engine.evaluation.measure import evaluation_noise
from trainer_engine.runtime.control import LOOK_AGAIN_SECONDS

RUN: dict[str, Any] = {"max_train_steps": 6, "eval_timesteps": 4, "num_eval_images": 2}
WITH = {"eval_steps_interval": 2}
DOCUMENTS = {"evaluations.json"}


def evaluations(run: HereRun) -> list[dict[str, Any]]:
    return [event.details for event in run.heard.of(Notification) if event.code == "evaluation"]


def losses(run: HereRun) -> dict[int, float]:
    return {one["step"]: one["loss"] for one in evaluations(run)}


def trained(run: HereRun) -> tuple[dict[str, bytes], list[float | None]]:
    """The newest checkpoint but for what it says of evaluations, and the loss of every step."""
    files = {name: content for name, content in run.files().items() if name not in DOCUMENTS}
    return files, [event.loss for event in run.heard.of(ProgressEvent)]


ADAPTER = {"model_type": "lora", "lora_rank": 2, "lora_dropout": 0.3, "base_model_precision": "int8-quanto"}


@pytest.mark.parametrize(
    "options",
    first_fast(
        [
            {"use_ema": True, "optimizer": "adamw_schedulefree"},
            ADAPTER,
            {},
            {"gradient_accumulation_steps": 2, "dataloader_prefetch": True, "prediction_type": "v_prediction"},
        ],
        2,
    ),
    ids=["average and schedule-free", "adapter on int8", "full", "v-prediction"],
)
def test_training_with_evaluations_is_bit_for_bit_training_without(tmp_path: Path, options: dict[str, Any]) -> None:
    without = train_here(tmp_path, output_dir=str(tmp_path / "without"), **(RUN | options))
    run = train_here(tmp_path, output_dir=str(tmp_path / "with"), datasets=with_held_out(tmp_path), **(RUN | WITH | options))
    assert trained(run) == trained(without)
    assert [one["step"] for one in evaluations(run)] == [0, 2, 4, 6]
    assert len(set(losses(run).values())) == 4


def test_every_evaluation_is_an_event_and_repeated_in_the_progress_after_it(tmp_path: Path) -> None:
    run = train_here(tmp_path, datasets=with_held_out(tmp_path, "one", "two"), use_ema=True, **(RUN | WITH))
    for evaluation in evaluations(run):
        names = {f"eval_loss{label}/{name}" for label in ("", "_ema") for name in ("one", "two")}
        assert set(evaluation["metrics"]) == names | {f"{name}/q{quarter}" for name in names for quarter in (1, 2, 3, 4)}
        assert evaluation["loss"] == pytest.approx((evaluation["metrics"]["eval_loss/one"] + evaluation["metrics"]["eval_loss/two"]) / 2)
    by_step = {one["step"]: one["metrics"] for one in evaluations(run)}
    for event in run.heard.of(ProgressEvent):
        before = max(step for step in by_step if step < event.step)
        assert event.metrics == {name: value for name, value in by_step[before].items() if "/q" not in name}
    stages = [event for event in run.heard.of(StageEvent) if event.key is StageKey.VALIDATION]
    assert {event.label for event in stages} == {"Evaluating"}
    assert run.heard.of(SummaryEvent)[0].time_split["evaluation"] > 0


def test_pooled_sets_are_one_series_and_one_set_can_be_chosen(tmp_path: Path) -> None:
    datasets = with_held_out(tmp_path, "one", "two")
    both = train_here(tmp_path, datasets=datasets, output_dir=str(tmp_path / "both"), **RUN)
    pooled = train_here(tmp_path, datasets=datasets, output_dir=str(tmp_path / "pooled"), eval_dataset_pooling=True, **RUN)
    chosen = train_here(tmp_path, datasets=datasets, output_dir=str(tmp_path / "chosen"), eval_dataset_id="two", **RUN)
    assert losses(both) == pytest.approx(losses(pooled), rel=1e-6)  # means of means, and one mean: other sums
    first, last = evaluations(both)[0]["metrics"], evaluations(chosen)[0]["metrics"]
    assert "eval_loss/one" not in last and first["eval_loss/two"] == last["eval_loss/two"]
    assert evaluations(pooled)[0]["metrics"]["eval_loss/all"] == evaluations(pooled)[0]["loss"]


def test_the_numbers_do_not_depend_on_how_the_run_trains(tmp_path: Path) -> None:
    one = train_here(tmp_path, datasets=with_held_out(tmp_path), output_dir=str(tmp_path / "one"), **(RUN | {"max_train_steps": 1}))
    changes = {"train_batch_size": 4, "seed": 8, "snr_gamma": 5.0, "loss_type": "huber", "caption_dropout_probability": 0.0}
    datasets = with_held_out(tmp_path, crop=True, crop_style="random", crop_aspect="preserve")
    other = train_here(tmp_path, datasets=datasets, output_dir=str(tmp_path / "other"), **(RUN | {"max_train_steps": 1} | changes))
    # Embeddings are made in other batches, whose kernels may round in another way.
    assert losses(one)[0] == pytest.approx(losses(other)[0], rel=1e-5)


def test_evaluations_follow_an_interval_in_steps_in_epochs_or_both(tmp_path: Path) -> None:
    datasets = with_held_out(tmp_path)
    run = train_here(
        tmp_path, datasets=datasets, output_dir=str(tmp_path / "a"), eval_epoch_interval=0.75, **(RUN | {"max_train_steps": 8})
    )
    assert [one["step"] for one in evaluations(run)] == [0, 3, 6, 8]  # of 4 steps an epoch; the last for its checkpoint
    both = train_here(tmp_path, datasets=datasets, output_dir=str(tmp_path / "b"), eval_epoch_interval=1.0, eval_steps_interval=3, **RUN)
    assert [one["step"] for one in evaluations(both)] == [0, 3, 4, 6]


def test_every_checkpoint_has_the_loss_of_its_own_weights_and_the_best_one_stays(tmp_path: Path) -> None:
    options = RUN | {"max_train_steps": 8, "checkpoint_step_interval": 1, "checkpoints_total_limit": 2, "learning_rate": 0.02}
    run = train_here(tmp_path, datasets=with_held_out(tmp_path), validation_disable=True, **options)
    measured = losses(run)
    assert sorted(measured) == list(range(9))
    kept = list_checkpoints(run.output_dir)
    assert all(info.eval_loss == measured[info.step] and info.eval_datasets == ("held-out",) for info in kept)
    lowest = min(range(1, 9), key=lambda step: measured[step])
    best = best_of(kept)
    assert best is not None and best.step == lowest < 7 and [info.step for info in kept] == [8, lowest]
    document = json.loads((run.output_dir / BEST_FILE).read_text())
    assert document == {"name": f"checkpoint-{lowest}", "step": lowest, "eval_loss": measured[lowest], "datasets": ["held-out"]}
    assert run.heard.of(SummaryEvent)[0].artefacts["best_checkpoint"] == str(best.path)


def test_a_resumed_run_measures_and_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    options = RUN | WITH | {"datasets": with_held_out(tmp_path), "use_ema": True}
    whole = train_here(tmp_path, output_dir=str(tmp_path / "whole"), **options)
    for after in (1, 4):  # an evaluation is due at 4, and made up for
        place = str(tmp_path / f"stopped-{after}")
        first = train_here(tmp_path, output_dir=place, stop_after=after, **options)
        assert first.code is ExitCode.STOPPED and after not in losses(first)
        rest = train_here(tmp_path, output_dir=place, **options)
        assert losses(first) | losses(rest) == losses(whole)
        assert rest.files() == whole.files()


def test_a_resumed_run_repeats_the_evaluation_that_a_stop_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = RUN | WITH | {"datasets": with_held_out(tmp_path)}
    whole = train_here(tmp_path, output_dir=str(tmp_path / "whole"), **options)
    calls = iter(range(1, 1000))

    def noise(*what: Any) -> Tensor:
        if next(calls) == 19:  # the evaluations before were of 2 images at 4 timesteps each
            commands.request(RunFolder(tmp_path / "run-here"), Command.STOP)
            time.sleep(LOOK_AGAIN_SECONDS)
        return evaluation_noise(*what)

    with monkeypatch.context() as patch:
        patch.setattr("trainer_engine.evaluation.measure.evaluation_noise", noise)
        first = train_here(tmp_path, output_dir=str(tmp_path / "stopped"), **options)
    assert (first.code, first.step, sorted(losses(first))) == (ExitCode.STOPPED, 4, [0, 2])
    rest = train_here(tmp_path, output_dir=str(tmp_path / "stopped"), **options)
    assert sorted(losses(rest)) == [4, 6] and rest.files() == whole.files()


def test_changed_held_out_images_restart_the_evaluations(tmp_path: Path) -> None:
    options = RUN | WITH
    train_here(tmp_path, datasets=with_held_out(tmp_path), stop_after=4, **options)
    run = train_here(tmp_path, datasets=with_held_out(tmp_path), **(options | {"num_eval_images": 3}))
    (notice,) = [event for event in run.heard.of(Notification) if event.code == "evaluations_changed"]
    assert "checkpoint-4" in notice.message
    document = json.loads((list_checkpoints(run.output_dir)[0].path / "evaluations.json").read_text())
    assert [one["step"] for one in document["evaluations"]] == [4, 6]


EARLY = {"learning_rate": 0.5, "early_stop_patience": 2, "eval_steps_interval": 1, "max_train_steps": 12}


def test_a_run_without_improvement_completes_early_at_the_same_step_after_a_resume(tmp_path: Path) -> None:
    datasets = with_held_out(tmp_path)
    whole = train_here(tmp_path, datasets=datasets, output_dir=str(tmp_path / "whole"), **(RUN | EARLY))
    assert whole.code is ExitCode.COMPLETED and whole.step < 12
    (summary,) = whole.heard.of(SummaryEvent)
    assert "Ended early: no improvement in 2 evaluations" in summary.message and summary.title == "Training complete"
    assert (whole.output_dir / "pipeline/model_index.json").is_file()
    assert list_checkpoints(whole.output_dir)[0].step == whole.step

    place = str(tmp_path / "stopped")
    train_here(tmp_path, datasets=datasets, output_dir=place, stop_after=1, **(RUN | EARLY))
    rest = train_here(tmp_path, datasets=datasets, output_dir=place, **(RUN | EARLY))
    assert (rest.step, rest.files()) == (whole.step, whole.files())

    again = train_here(tmp_path, datasets=datasets, output_dir=place, **(RUN | EARLY))
    assert again.code is ExitCode.COMPLETED and again.heard.of(ProgressEvent) == []
    notice = next(event for event in again.heard.of(Notification) if event.code == "already_finished")
    assert "Ended early" in notice.message


def test_an_early_end_on_the_step_of_a_rolling_checkpoint_is_recorded_in_it(tmp_path: Path) -> None:
    options = RUN | EARLY | {"checkpointing_rolling_steps": 1, "datasets": with_held_out(tmp_path)}
    run = train_here(tmp_path, **options)
    assert run.code is ExitCode.COMPLETED and run.step < 12
    newest, beside, *_ = list_checkpoints(run.output_dir)
    assert (newest.name, beside.name) == (f"checkpoint-{run.step}", f"checkpoint-{run.step}-rolling")
    assert newest.eval_loss == pytest.approx(losses(run)[run.step])
    again = train_here(tmp_path, **options)
    assert "already_finished" in [event.code for event in again.heard.of(Notification)]


def test_a_fresh_start_forgets_the_best_checkpoint_of_the_run_before(tmp_path: Path) -> None:
    datasets = with_held_out(tmp_path)
    train_here(tmp_path, datasets=datasets, **RUN)
    assert (tmp_path / "output" / BEST_FILE).exists()
    fresh = train_here(tmp_path, resume_from_checkpoint="", stop_after=1, **RUN)
    assert not (tmp_path / "output" / BEST_FILE).exists()
    assert [info.eval_loss for info in list_checkpoints(fresh.output_dir)] == [None]


def test_held_out_captions_are_generated_under_the_names_of_their_files(tmp_path: Path) -> None:
    drawing = {
        "validation_disable": False,
        "validation_resolution": "64x64",
        "validation_num_inference_steps": 1,
        "disable_benchmark": True,
    }
    run = train_here(tmp_path, datasets=with_held_out(tmp_path), eval_loss_disable=True, **(RUN | drawing | {"max_train_steps": 1}))
    names = [Path(event.images[0].file).stem for event in run.heard.of(ImageEvent)]
    pictures = sorted(path.stem for path in (tmp_path / "held-out").iterdir())[:2]
    assert names == [f"step_1_{name}_0_64x64" for name in ("unconditional", *pictures)]
    assert evaluations(run) == []


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("held-out/a.png"),
        torch.OutOfMemoryError("Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_an_evaluation_that_cannot_be_made_does_not_end_the_run(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("trainer_engine.evaluation.measure.evaluation_noise", fail)
    run = train_here(tmp_path, datasets=with_held_out(tmp_path), eval_steps_interval=1, **(RUN | {"max_train_steps": 1}))
    errors = run.heard.of(ErrorEvent)
    assert run.code is ExitCode.COMPLETED and [event.code for event in errors] == ["evaluation_failed"] * 2  # once a step
    assert all((str(error) or "MemoryError") in event.message for event in errors)


def test_a_pointer_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "output" / BEST_FILE).mkdir(parents=True)
    run = train_here(tmp_path, datasets=with_held_out(tmp_path), **(RUN | {"max_train_steps": 1}))
    assert run.code is ExitCode.COMPLETED
    assert {event.code for event in run.heard.of(ErrorEvent)} == {"best_checkpoint_not_written"}


def test_copies_of_trained_images_are_reported(tmp_path: Path) -> None:
    run = train_here(tmp_path, datasets=with_held_out(tmp_path, size=(96, 96)), **(RUN | {"max_train_steps": 1}))
    (warning,) = [event for event in run.heard.of(Notification) if event.code == "held_out_but_trained"]
    assert warning.message.startswith("2 of 2 held-out images")

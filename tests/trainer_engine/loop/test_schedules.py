"""Runs whose sets begin and end while they go on, and take batches of their own size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.helpers.params import first_fast
from tests.helpers.pictures import generate_images
from tests.helpers.resuming import assert_same_checkpoints
from tests.helpers.tiny_run import HereRun, tiny_datasets, tiny_options, train_here
from trainer_engine.batches.loader import StepBatches
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.checkpoint_files import STATE_FILE, list_checkpoints
from trainer_engine.contract.errors import CheckpointUnusable, DatasetUnusable, ExitCode
from trainer_engine.contract.events import CheckpointEvent, ProgressEvent
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.schedule import run_steps
from trainer_engine.loop.step import micro_batch_shares

STEPS = 9
SCHEDULES: dict[str, dict[str, Any]] = {
    "begins with an epoch": {"start_epoch": 2},
    "begins within an epoch": {"start_step": 3},
    "ends with an epoch": {"end_epoch": 1},
    "ends within an epoch": {"end_step": 2},
    "has batches of its own": {"train_batch_size": 1},
    "has all of it": {"start_step": 2, "end_step": 7, "train_batch_size": 3, "repeats": 1},
}


def two_sets(place: Path, **fields: Any) -> list[dict[str, Any]]:
    """The usual set, and a second one with these fields."""
    first, texts = tiny_datasets(place)
    if not (place / "more").exists():
        generate_images(place / "more", count=5, size=(96, 96))
    second = {**first, "id": "more", "instance_data_dir": str(place / "more"), "cache_dir_vae": str(place / "cache/more"), **fields}
    return [first, second, texts]


def run(place: Path, fields: dict[str, Any], name: str = "straight", **options: Any) -> HereRun:
    values = {"max_train_steps": STEPS, **options}
    return train_here(place, datasets=two_sets(place, **fields), output_dir=str(place / name), **values)


@pytest.mark.parametrize("name", first_fast(list(SCHEDULES), 2))
def test_a_run_resumes_exactly_across_a_gate(tmp_path: Path, name: str) -> None:
    fields = SCHEDULES[name]
    options = {"gradient_accumulation_steps": 2, "dataloader_prefetch": True}
    whole = run(tmp_path, fields, **options)
    assert whole.code is ExitCode.COMPLETED
    for after in (2, 6):
        assert run(tmp_path, fields, "interrupted", stop_after=after, **options).step == after
        assert_same_checkpoints(whole, run(tmp_path, fields, "interrupted", **options))
        shutil.rmtree(tmp_path / "interrupted")


@pytest.mark.parametrize("fields", first_fast(list(SCHEDULES.values()), 2), ids=SCHEDULES)
def test_epochs_of_a_run_are_those_that_the_report_counts(tmp_path: Path, fields: dict[str, Any]) -> None:
    done = run(tmp_path, fields, max_train_steps=0, num_train_epochs=3, checkpoint_epoch_interval=1, checkpoint_step_interval=1000)
    options = parse_options(tiny_options(tmp_path, max_train_steps=0, num_train_epochs=3))
    spec = find_spec(options.model.model_family)
    assert spec is not None
    report = examine(parse_dataloader(two_sets(tmp_path, **fields), options)[0], options, spec)
    ends = [report.timeline.start_of(epoch) for epoch in (1, 2, 3)]
    assert done.step == run_steps(options, report.timeline) == ends[-1]
    assert [event.step for event in done.heard.of(CheckpointEvent)] == ends
    epochs = [event.epoch for event in done.heard.of(ProgressEvent)]
    assert epochs == [1] * ends[0] + [2] * (ends[1] - ends[0]) + [3] * (ends[2] - ends[1])
    state = json.loads((list_checkpoints(done.output_dir)[0].path / STATE_FILE).read_bytes())
    assert state["position"] == {"epoch": 3, "index": 0}


def test_a_changed_gate_is_refused_by_name_unless_it_is_meant(tmp_path: Path) -> None:
    run(tmp_path, {"end_step": 6}, max_train_steps=4)
    with pytest.raises(CheckpointUnusable, match="dataset more: end_step was 6 and is 5"):
        run(tmp_path, {"end_step": 5})
    done = run(tmp_path, {"end_step": 5}, i_know_what_i_am_doing=True)
    assert (done.code, done.step) == (ExitCode.COMPLETED, STEPS)


def test_a_run_that_outlasts_its_sets_is_refused_before_it_begins(tmp_path: Path) -> None:
    sets = two_sets(tmp_path, end_epoch=1)
    with pytest.raises(DatasetUnusable, match="No image set is trained on after step"):
        train_here(tmp_path, datasets=[{**sets[0], "end_step": 2}, *sets[1:]], max_train_steps=30)


def test_the_speed_of_a_run_follows_its_samples(tmp_path: Path) -> None:
    done = run(tmp_path, {"train_batch_size": 8, "repeats": 4})
    events = done.heard.of(ProgressEvent)
    assert all(event.samples_per_second > 0 for event in events)


def batches_of(*sizes: int) -> StepBatches:
    passes = tuple(SimpleNamespace(files=("a.png",) * size) for size in sizes)
    return StepBatches(0, 0, cast(Any, passes), sum(sizes))


@pytest.mark.parametrize("sizes", [(1, 3, 4), (2, 2, 2), (5,)])
def test_every_sample_of_a_step_counts_the_same(sizes: tuple[int, ...]) -> None:
    """Against the gradient of the mean over all samples at once."""
    torch.manual_seed(1)
    inputs, weight = torch.randn(sum(sizes), 4), torch.randn(4, requires_grad=True)
    for part, share in zip(inputs.split(sizes), micro_batch_shares(batches_of(*sizes)), strict=True):
        ((part @ weight).square().mean() / share).backward()
    (wanted,) = torch.autograd.grad((inputs @ weight).square().mean(), weight)
    torch.testing.assert_close(weight.grad, wanted, rtol=1e-6, atol=1e-6)


def test_equal_micro_batches_are_divided_by_their_number_as_before() -> None:
    assert micro_batch_shares(batches_of(2, 2, 2)) == [3.0, 3.0, 3.0]

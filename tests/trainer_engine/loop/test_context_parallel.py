"""Runs whose processes share the tokens of a sample: they train, measure and show what one process does, and resume byte for byte."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.models import tiny_model
from tests.helpers.pictures import assert_same_images
from tests.helpers.resuming import assert_same_files
from tests.helpers.tiny_run import HereRun, TinyRun, files_of, start_ranks, train_here, with_held_out
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode, InvalidOptions
from trainer_engine.contract.events import EVALUATION, Notification, ProgressEvent

PROGRESS = "training.progress"
STEPS = 4
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def options_of(family: str) -> dict[str, Any]:
    """A full fine-tune of a micro model that is evaluated, and shows an image at the end."""
    return {
        "model_family": family,
        "model": str(tiny_model(family)),
        "max_train_steps": STEPS,
        "checkpoint_step_interval": 2,
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "eval_steps_interval": 2,
        "eval_timesteps": 2,
        "validation_disable": False,
        "validation_disable_unconditional": True,
        "validation_prompt": "a red circle",
        "validation_resolution": "64x64",
        "validation_num_inference_steps": 2,
        "validation_guidance": 1.0,
    }


def start_split(place: Path, name: str, *, processes: int = 2, **options: Any) -> TinyRun:
    """A run whose processes work on one sample two by two."""
    chosen = {"train_batch_size": 2, "context_parallel_size": 2, "output_dir": str(place / name), **options}
    return start_ranks(place, f"run-{name}", processes=processes, datasets=with_held_out(place, size=(96, 96)), **chosen)


def run_split(place: Path, name: str, **options: Any) -> TinyRun:
    run = start_split(place, name, **options)
    assert run.wait() == 0, run.log()
    return run


def losses(run: TinyRun) -> list[float]:
    return [entry.data["loss"] for entry in run.of_type(PROGRESS)]


@dataclass
class Runs:
    """The same run, on one process and on a group of two."""

    place: Path
    alone: HereRun
    together: TinyRun


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("flux")
    datasets = with_held_out(place, size=(96, 96))
    alone = train_here(place, datasets=datasets, output_dir=str(place / "alone"), **options_of("flux"))
    return Runs(place, alone, run_split(place, "together", **options_of("flux")))


def test_a_group_trains_what_one_process_trains(flux: Runs) -> None:
    events = flux.alone.heard.of(ProgressEvent)
    assert losses(flux.together) == pytest.approx([event.loss for event in events], rel=1e-6)
    norms = [entry.data["grad_norm"] for entry in flux.together.of_type(PROGRESS)]
    assert norms == pytest.approx([event.grad_norm for event in events], rel=1e-5)
    base = load_file(Path(tiny_model("flux")) / WEIGHTS)
    one, two = (load_file(output / f"checkpoint-{STEPS}" / WEIGHTS) for output in (flux.alone.output_dir, flux.together.output_dir))
    moved = torch.cat([(one[name] - base[name]).flatten() for name in one]).norm()
    apart = torch.cat([(one[name] - two[name]).flatten() for name in one]).norm()
    assert apart < 1e-3 * moved, (moved, apart)


def test_a_group_counts_as_one_process(flux: Runs) -> None:
    assert [entry.data["epoch"] for entry in flux.together.of_type(PROGRESS)] == [one.epoch for one in flux.alone.heard.of(ProgressEvent)]
    ours, others = (files_of(output / f"checkpoint-{STEPS}") for output in (flux.alone.output_dir, flux.together.output_dir))
    assert sorted(ours) == sorted(others) and ours["samples.json"] == others["samples.json"]


def test_a_group_measures_the_loss_of_held_out_images_once(flux: Runs) -> None:
    alone = [note.details["metrics"] for note in flux.alone.heard.of(Notification) if note.code == EVALUATION]
    together = [note.data["details"]["metrics"] for note in flux.together.of_type("notification") if note.data["code"] == EVALUATION]
    assert len(alone) == len(together) == 3
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


def test_a_group_generates_the_image_that_one_process_generates(flux: Runs) -> None:
    assert_same_images(flux.alone.output_dir / "validation_images", flux.together.output_dir / "validation_images")


def test_a_group_resumes_byte_for_byte(flux: Runs) -> None:
    place = flux.place
    shutil.copytree(flux.together.output_dir / "checkpoint-2", place / "resumed" / "checkpoint-2")
    resumed = run_split(place, "resumed", resume_from_checkpoint="latest", **options_of("flux"))
    assert losses(resumed) == losses(flux.together)[2:]
    assert_same_files(*(files_of(run.output_dir / f"checkpoint-{STEPS}") for run in (flux.together, resumed)))


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_as_a_group_with_the_same_samples(flux: Runs) -> None:
    place = flux.place
    shutil.copytree(flux.alone.output_dir / "checkpoint-2", place / "moved" / "checkpoint-2")
    moved = run_split(place, "moved", resume_from_checkpoint="latest", **options_of("flux"))
    assert losses(moved) == pytest.approx([event.loss for event in flux.alone.heard.of(ProgressEvent)][2:], rel=1e-5)


@pytest.mark.slow
def test_groups_of_four_processes_take_different_samples(tmp_path: Path) -> None:
    options = {**options_of("wan"), "use_ema": False, "validation_disable": True}
    datasets = with_held_out(tmp_path, size=(96, 96))
    alone = train_here(tmp_path, datasets=datasets, output_dir=str(tmp_path / "alone"), **options, train_batch_size=2)
    four = run_split(tmp_path, "four", processes=4, **options, train_batch_size=1)
    assert losses(four) == pytest.approx([event.loss for event in alone.heard.of(ProgressEvent)], rel=1e-5)


@pytest.mark.slow
def test_an_image_that_the_first_of_a_group_cannot_write_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "validation_images").write_text("a file in the place of the folder")
    run = run_split(tmp_path, "blocked", **{**options_of("wan"), "max_train_steps": 2, "num_validation_images": 2, "use_ema": False})
    failures = [(entry.data["code"], entry.data["details"]["step"]) for entry in run.of_type("error")]
    assert failures == [("validation_not_written", 0), ("validation_not_written", 2)], "of the base model, and of the end"
    assert losses(run) and run.newest_checkpoint().step == 2


@pytest.mark.slow
def test_a_group_stops_together(tmp_path: Path) -> None:
    run = start_split(tmp_path, "stopped", **{**options_of("wan"), "max_train_steps": 100_000, "validation_disable": True})
    run.wait_for(PROGRESS)
    run.request(Command.STOP)
    run.wait(60)
    report = run.report()
    assert report is not None and report.exit_code == ExitCode.STOPPED and report.step == run.newest_checkpoint().step


def test_the_engine_refuses_processes_that_make_no_whole_group(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptions) as refused:
        train_here(tmp_path, **{**options_of("wan"), "context_parallel_size": 2})
    assert [(problem.option, problem.code) for problem in refused.value.problems] == [("context_parallel_size", "needs_processes")]
    assert "num_processes=2" in refused.value.problems[0].hint

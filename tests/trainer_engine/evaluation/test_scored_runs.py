"""Whole runs whose validation images are scored: what they report, what fails, and that training is not affected."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.params import first_fast
from tests.helpers.scoring import score_by_hand, tiny_clip
from tests.helpers.tiny_run import HereRun, run_of_ranks, train_here
from trainer_engine.contract import commands
from trainer_engine.contract.commands import Command
from trainer_engine.contract.errors import ExitCode, ModelUnavailable
from trainer_engine.contract.events import ErrorEvent, ImageEvent, Notification, ProgressEvent, Severity, StageEvent, StageStatus
from trainer_engine.contract.run import RunFolder
from trainer_engine.evaluation.clip_scores import ClipScorer
from trainer_engine.runtime.control import LOOK_AGAIN_SECONDS

LIBRARY = json.dumps({"plain": "a red circle", "mean": "a dog", "long": "a very long prompt about an owl " * 10})
RUN: dict[str, Any] = {
    "max_train_steps": 3,
    "learning_rate": 1e-2,
    "validation_disable": False,
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 2,
    "validation_prompt": "a cat",
    "user_prompt_library": LIBRARY,
    "disable_benchmark": False,
    "validation_step_interval": 2,
}
SCORED = {"evaluation_type": "clip", "pretrained_evaluation_model_name_or_path": str(tiny_clip())}
NAMES = ["plain", "mean", "long", "validation"]
CLOSE = 1e-3


def scores(run: HereRun) -> list[Mapping[str, Any]]:
    return [event.details for event in run.heard.of(Notification) if event.code == "clip_scores"]


def assert_same_training(one: HereRun, other: HereRun) -> None:
    losses = [[event.loss for event in run.heard.of(ProgressEvent)] for run in (one, other)]
    assert losses[0] == losses[1]
    assert one.files() == other.files()


@pytest.mark.parametrize(
    "options",
    first_fast(
        [
            {"use_ema": True, "optimizer": "adamw_schedulefree", "lr_scheduler": "constant"},
            {},
            {"model_type": "lora", "lora_rank": 2, "lora_dropout": 0.3, "base_model_precision": "int8-quanto"},
        ]
    ),
    ids=["average and schedule-free", "full", "adapter on int8"],
)
def test_training_with_scores_is_bit_for_bit_training_without(options: dict[str, Any], tmp_path: Path) -> None:
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **(RUN | options | {"validation_disable": True}))
    scored = train_here(tmp_path, output_dir=str(tmp_path / "scored"), **(RUN | SCORED | options))
    assert_same_training(plain, scored)
    assert not scored.heard.of(ErrorEvent)
    assert [details["step"] for details in scores(scored)] == [0, 2, 3]


def test_every_image_with_a_prompt_is_scored_and_the_means_are_reported(tmp_path: Path) -> None:
    run = train_here(tmp_path, num_validation_images=2, report_to="tensorboard", tracker_run_name="one", **RUN, **SCORED)
    prompts = {Path(event.images[0].file).name: event.prompt for event in run.heard.of(ImageEvent)}
    for details in scores(run):
        files = [one["file"] for one in details["images"]]
        named = [name for name, prompt in prompts.items() if name.startswith(f"step_{details['step']}_") and prompt]
        assert sorted(files) == sorted(named) and len(files) == 2 * len(NAMES)
        for one in details["images"]:
            image = run.output_dir / "validation_images" / one["file"]
            assert one["score"] == pytest.approx(score_by_hand(tiny_clip(), image, prompts[one["file"]]), abs=CLOSE)
        of = {name: [one["score"] for one in details["images"] if one["shortname"] == name] for name in NAMES}
        wanted = {f"clip_score/prompt/{name}": fmean(found) for name, found in of.items()}
        assert details["metrics"] == pytest.approx({"clip_score/mean": fmean(one["score"] for one in details["images"]), **wanted})
        assert details["model"] == str(tiny_clip())
    by_step = {details["step"]: details["metrics"]["clip_score/mean"] for details in scores(run)}
    assert len(set(by_step.values())) == 3
    assert [event.metrics["clip_score/mean"] for event in run.heard.of(ProgressEvent)] == [by_step[0], by_step[0], by_step[2]]
    tracked = EventAccumulator(str(run.output_dir / "logs/one")).Reload()
    assert {event.step: event.value for event in tracked.Scalars("clip_score/mean")} == pytest.approx(by_step)
    assert "clip_score/prompt/mean" in tracked.Tags()["scalars"]
    stages = [event for event in run.heard.of(StageEvent) if event.label == "Scoring images" and event.status is StageStatus.COMPLETED]
    assert [(event.current, event.total) for event in stages] == [(8, 8)] * 3


def test_a_prompt_that_is_too_long_is_reported_once(tmp_path: Path) -> None:
    run = train_here(tmp_path, **RUN, **SCORED)
    (warning,) = [event for event in run.heard.of(Notification) if event.code == "clip_prompts_cut"]
    assert warning.severity is Severity.WARNING and warning.message.endswith(": long.") and "77 tokens" in warning.message
    assert len(scores(run)) == 3


def test_images_of_the_average_have_means_of_their_own(tmp_path: Path) -> None:
    run = train_here(tmp_path, **RUN, **SCORED, use_ema=True, ema_decay=0.5)
    base, _, last = (details["metrics"] for details in scores(run))
    assert {name.partition("/")[0] for name in base} == {"clip_score"}
    ends = ["mean", *(f"prompt/{one}" for one in NAMES)]
    for start in ("clip_score", "clip_score_ema"):
        assert sorted(name for name in last if name.startswith(start + "/")) == sorted(f"{start}/{end}" for end in ends)
    assert last["clip_score/mean"] != last["clip_score_ema/mean"]
    assert all("clip_score_ema/mean" not in event.metrics for event in run.heard.of(ProgressEvent)[:2])


def test_a_requested_validation_is_scored_and_one_without_prompts_is_not(tmp_path: Path) -> None:
    options = {**RUN, **SCORED, "disable_benchmark": True, "validation_step_interval": 100}
    asked = train_here(tmp_path, asked={1: [Command.VALIDATE]}, output_dir=str(tmp_path / "asked"), **options)
    assert [details["step"] for details in scores(asked)] == [1, 3]
    bare = train_here(tmp_path, output_dir=str(tmp_path / "bare"), **{**options, "validation_prompt": "", "user_prompt_library": None})
    assert bare.heard.of(ImageEvent) and not scores(bare) and not bare.heard.of(ErrorEvent)
    assert not [event for event in bare.heard.of(StageEvent) if event.label == "Scoring images"]


def failing(monkeypatch: pytest.MonkeyPatch, number: int, fail: Callable[[Path], None]) -> None:
    """Scoring of image ``number`` (from 1) of the process fails."""
    seen, score = [], ClipScorer._score

    def score_or_fail(self: ClipScorer, file: Path, prompt: str) -> float:
        seen.append(file)
        if len(seen) == number:
            torch.rand(3)
            fail(file)
        return score(self, file, prompt)

    monkeypatch.setattr(ClipScorer, "_score", score_or_fail)


def break_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def run_out(file: Path) -> None:
    raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")


@pytest.mark.parametrize(
    ("fail", "code", "word"),
    [
        (run_out, "scoring_out_of_memory", "pretrained_evaluation_model_name_or_path"),
        (break_file, "scoring_failed", "look at the images"),
    ],
)
def test_scoring_that_fails_is_a_warning_and_the_next_one_scores_again(
    fail: Callable[[Path], None], code: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train_here(tmp_path, output_dir=str(tmp_path / "plain"), **(RUN | {"validation_disable": True}))
    failing(monkeypatch, len(NAMES) + 2, fail)
    run = train_here(tmp_path, output_dir=str(tmp_path / "failing"), **RUN, **SCORED)
    assert run.code is ExitCode.COMPLETED
    assert_same_training(plain, run)
    (error,) = run.heard.of(ErrorEvent)
    assert (error.code, error.severity, error.details) == (code, Severity.WARNING, {"step": 2})
    assert "step 2" in error.message and word in error.hint and "training goes on" in error.hint
    assert [one["step"] for one in scores(run)] == [0, 3]


def test_a_stop_is_not_kept_waiting_by_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask_to_stop(file: Path) -> None:
        commands.request(RunFolder(tmp_path / "run-here"), Command.STOP)
        time.sleep(2 * LOOK_AGAIN_SECONDS)

    failing(monkeypatch, len(NAMES) + 2, ask_to_stop)
    run = train_here(tmp_path, **(RUN | SCORED | {"max_train_steps": 9}))
    assert (run.code, run.step) == (ExitCode.STOPPED, 3)  # looked at after the next step
    assert [one["step"] for one in scores(run)] == [0] and not run.heard.of(ErrorEvent)


def test_a_missing_clip_model_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    read: list[int] = []
    with pytest.raises(ModelUnavailable, match="There is no folder"):
        options = {**RUN, **SCORED, "pretrained_evaluation_model_name_or_path": str(tmp_path / "nowhere")}
        train_here(tmp_path, on_step=read.append, **options)
    assert read == [0] and not (tmp_path / "cache").exists()


def test_a_run_without_validation_images_loads_no_clip_model(tmp_path: Path) -> None:
    options = {**SCORED, "pretrained_evaluation_model_name_or_path": str(tmp_path / "nowhere"), "max_train_steps": 1}
    assert train_here(tmp_path, validation_disable=True, **options).code is ExitCode.COMPLETED


@pytest.mark.slow
@pytest.mark.parametrize("how", ["batch-parallel", "single-gpu"])
def test_two_processes_score_what_one_does(how: str, tmp_path: Path) -> None:
    options = {**RUN, **SCORED, "max_train_steps": 2}
    alone = train_here(tmp_path, output_dir=str(tmp_path / "alone"), **options)
    run = run_of_ranks(tmp_path, validation_multigpu=how, **options)
    served = [entry.data["details"] for entry in run.of_type("notification") if entry.data["code"] == "clip_scores"]
    assert [one["step"] for one in served] == [0, 2]
    first, wanted = ({one["file"]: one["score"] for one in found[0]["images"]} for found in (served, scores(alone)))
    assert len(first) == len(NAMES) and first == pytest.approx(wanted, abs=CLOSE)
    assert len(served[1]["images"]) == len(NAMES)

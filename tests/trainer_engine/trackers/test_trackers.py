"""Trackers get the metrics and images of a run; what goes wrong with one is a warning, and nothing waits for it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.held_out import with_held_out
from tests.helpers.served_runs import wait_until
from tests.helpers.tiny_run import HereRun, train_here
from trainer_engine.config.destinations import has_wandb_login, parse_trackers
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.trackers import sink
from trainer_engine.trackers.base import RunFacts, Tracker
from trainer_engine.trackers.reporter import MOST_WAITING, Reporter

GIVEN = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
FACTS = RunFacts("project", "name", Path(), {}, False)


def drawing_run(place: Path, **options: Any) -> HereRun:
    small = {"validation_prompt": "a cat", "validation_resolution": "64x64", "validation_num_inference_steps": 1}
    return train_here(place, validation_disable=False, disable_benchmark=True, max_train_steps=3, **small, **options)


def warnings(run: HereRun) -> list[str]:
    return [event.message for event in run.heard.of(Notification) if event.severity is Severity.WARNING]


def test_tensorboard_files_hold_every_step_and_the_images(tmp_path: Path) -> None:
    run = drawing_run(tmp_path, report_to="tensorboard", tracker_run_name="../my cats")
    found = EventAccumulator(str(run.output_dir / "logs/_my_cats"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3]
    assert {"learning_rate", "grad_norm", "epoch", "samples_per_second"} <= set(found.Tags()["scalars"])
    assert len(found.Tags()["images"]) == 2
    assert warnings(run) == []


def test_evaluations_are_told_at_their_steps(tmp_path: Path) -> None:
    options = {"eval_steps_interval": 2, "eval_timesteps": 2, "num_eval_images": 1, "max_train_steps": 3}
    run = train_here(tmp_path, datasets=with_held_out(tmp_path), report_to="tensorboard", tracker_run_name="one", **options)
    found = EventAccumulator(str(run.output_dir / "logs/one")).Reload()
    assert [event.step for event in found.Scalars("eval_loss/held-out")] == [0, 2, 3]
    assert "eval_loss/held-out/q4" in found.Tags()["scalars"]


def test_wandb_without_a_login_writes_a_run_that_can_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = drawing_run(tmp_path, report_to="wandb", tracker_project_name="cats", tracker_run_name="one")
    (file,) = (run.output_dir / "logs").rglob("run-*.wandb")
    words = (b"grad_norm", b"cats", b"max_train_steps")
    # Written by a process of wandb's own, which may be slower than the run.
    wait_until(lambda: all(word in file.read_bytes() for word in words), "wandb's file is written", seconds=30)
    assert file.read_bytes()[:4] == b":W&B"
    assert len(list((run.output_dir / "logs").rglob("*.png"))) == 2
    assert warnings(run) == []


class Broken(Tracker):
    def __init__(self, facts: RunFacts) -> None:
        self.count = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("the tracker's server is on fire")

    def image(self, step: int, title: str, path: Path, caption: str) -> None:
        raise AssertionError("nothing is told to a tracker that failed")

    def close(self) -> None:
        raise AssertionError("nothing is told to a tracker that failed")


def test_a_tracker_that_fails_is_a_warning_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MAKERS", {"tensorboard": Broken})
    run = drawing_run(tmp_path, report_to="tensorboard")
    assert (run.code, run.step) == (ExitCode.COMPLETED, 3)
    (warning,) = warnings(run)
    assert "on fire" in warning


def test_one_that_cannot_even_begin_is_a_warning_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(facts: RunFacts) -> Tracker:
        raise ImportError("no such library")

    monkeypatch.setattr(sink, "MAKERS", {"wandb": refuse})
    run = train_here(tmp_path, report_to="wandb")
    assert run.code is ExitCode.COMPLETED
    assert ["no such library" in warning for warning in warnings(run)] == [True]


def test_whoever_tells_a_slow_tracker_something_does_not_wait() -> None:
    let_go = threading.Event()

    class Slow(Broken):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            let_go.wait(30)
            self.count += 1

        def close(self) -> None:
            counted.append(self.count)

    counted: list[int] = []
    reporter = Reporter("slow", Slow, FACTS)
    for step in range(MOST_WAITING + 50):
        reporter.emit(lambda tracker, step=step: tracker.metrics(step, {}))
    assert reporter.lost >= 40
    let_go.set()
    reporter.close()
    assert counted[0] + reporter.lost == MOST_WAITING + 50
    assert reporter.trouble == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("none", ()),
        ("", ()),
        ("wandb", ("wandb",)),
        ("tensorboard, WandB,tensorboard", ("tensorboard", "wandb")),
        ("none,wandb", ("wandb",)),
    ],
)
def test_lists_of_trackers_are_read(text: str, wanted: tuple[str, ...]) -> None:
    assert parse_trackers(text) == wanted


@pytest.mark.parametrize(("text", "word"), [("wandb,comet_ml", "comet_ml is known"), ("wandb,tensorbord", "'tensorbord'")])
def test_unknown_trackers_are_told(text: str, word: str) -> None:
    _, problems = check_options({**GIVEN, "report_to": text})
    (problem,) = [problem for problem in problems if problem.option == "report_to"]
    assert problem.code == "unknown_tracker"
    assert word in problem.message


def test_a_login_is_a_key_or_a_line_of_netrc(tmp_path: Path) -> None:
    assert has_wandb_login({"WANDB_API_KEY": "x" * 40})
    assert not has_wandb_login({"HOME": str(tmp_path)})
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_wandb_login({"HOME": str(tmp_path)})
    (tmp_path / ".netrc").write_text("machine example.com login user password secret\n")
    assert not has_wandb_login({"HOME": str(tmp_path)})

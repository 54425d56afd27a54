"""Trackers get the metrics and images of a run. A failure is a warning, and the run does not wait for a tracker."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.models import tiny_model
from tests.helpers.served_runs import wait_until
from tests.helpers.tiny_run import HereRun, train_here, with_held_out
from trainer_engine.config.destinations import has_wandb_login, parse_trackers
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import ExitCode
from trainer_engine.contract.events import Notification, Severity
from trainer_engine.trackers import sink
from trainer_engine.trackers.base import MOST_WAITING, Reporter, RunFacts, Tracker

GIVEN = {"model_family": "pixart_sigma", "model_type": "full", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1}
FACTS = RunFacts("project", "name", Path(), {}, False)


def run_with_images(place: Path, **options: Any) -> HereRun:
    small = {"validation_prompt": "a cat", "validation_resolution": "64x64", "validation_num_inference_steps": 1}
    return train_here(place, validation_disable=False, disable_benchmark=True, max_train_steps=3, **(small | options))


def warnings(run: HereRun) -> list[str]:
    return [event.message for event in run.heard.of(Notification) if event.severity is Severity.WARNING]


def test_tensorboard_files_contain_every_step_and_the_images(tmp_path: Path) -> None:
    run = run_with_images(tmp_path, report_to="tensorboard", tracker_run_name="../my cats")
    found = EventAccumulator(str(run.output_dir / "logs/_my_cats"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3]
    assert {"learning_rate", "grad_norm", "epoch", "samples_per_second"} <= set(found.Tags()["scalars"])
    assert len(found.Tags()["images"]) == 2
    assert warnings(run) == []


def test_evaluations_are_logged_at_their_steps(tmp_path: Path) -> None:
    options = {"eval_steps_interval": 2, "eval_timesteps": 2, "num_eval_images": 1, "max_train_steps": 3}
    run = train_here(tmp_path, datasets=with_held_out(tmp_path), report_to="tensorboard", tracker_run_name="one", **options)
    found = EventAccumulator(str(run.output_dir / "logs/one")).Reload()
    assert [event.step for event in found.Scalars("eval_loss/held-out")] == [0, 2, 3]
    assert "eval_loss/held-out/q4" in found.Tags()["scalars"]


@pytest.mark.slow
def test_wandb_without_a_login_writes_a_run_that_can_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_with_images(tmp_path, report_to="wandb", tracker_project_name="cats", tracker_run_name="one")
    (file,) = (run.output_dir / "logs").rglob("run-*.wandb")
    words = (b"grad_norm", b"cats", b"max_train_steps")
    # Written by a process of wandb's own, which may be slower than the run.
    wait_until(lambda: all(word in file.read_bytes() for word in words), "wandb's file is written", seconds=30)
    assert file.read_bytes()[:4] == b":W&B"
    assert len(list((run.output_dir / "logs").rglob("*.png"))) == 2
    assert warnings(run) == []


def run_with_a_clip(place: Path, **options: Any) -> HereRun:
    chosen = {"model_family": "wan", "model": str(tiny_model("wan")), "validation_num_video_frames": 5, "validation_prompt": "a cat"}
    small = {"validation_resolution": "64x64", "validation_num_inference_steps": 1, "validation_disable_unconditional": True}
    return train_here(place, validation_disable=False, disable_benchmark=True, max_train_steps=1, **chosen, **small, **options)


def test_tensorboard_gets_a_clip_as_an_animation(tmp_path: Path) -> None:
    run = run_with_a_clip(tmp_path, report_to="tensorboard", tracker_run_name="one")
    found = EventAccumulator(str(run.output_dir / "logs/one"), size_guidance={"images": 0}).Reload()
    (shown,) = found.Images("validation/validation")
    written = (run.output_dir / "validation_images/step_1_validation_0_64x64.gif").read_bytes()
    assert (shown.step, shown.width, shown.height, shown.encoded_image_string) == (1, 64, 64, written)
    assert warnings(run) == []


@pytest.mark.slow
def test_wandb_gets_a_clip_as_a_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_with_a_clip(tmp_path, report_to="wandb", tracker_run_name="one")
    (logged,) = (run.output_dir / "logs").rglob("*.gif")
    assert logged.read_bytes() == (run.output_dir / "validation_images/step_1_validation_0_64x64.gif").read_bytes()
    assert warnings(run) == []


def test_wandb_shows_the_images_of_each_validation_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = {"tracker_image_layout": "table", "validation_step_interval": 2, "validation_resolution": "64x64,96x64"}
    run = run_with_images(tmp_path, report_to="wandb", tracker_run_name="one", **options)
    tables = [json.loads(path.read_text()) for path in sorted((run.output_dir / "logs").rglob("*.table.json"))]
    assert [table["columns"] for table in tables] == [["title", "prompt", "image"]] * 2  # of step 2, and of the end at step 3
    for table in tables:
        assert {(row[0], row[1]) for row in table["data"]} == {("validation/validation", "a cat"), ("validation/unconditional", "")}
        assert [row[2] for row in table["data"]] == ["Image"] * 4  # of the two sizes; wandb keeps the files in an artifact
    assert warnings(run) == []


@pytest.mark.parametrize(("report_to", "codes"), [("wandb", []), ("tensorboard,wandb", []), ("tensorboard", ["no_effect"])])
def test_validate_notes_a_table_that_no_tracker_shows(report_to: str, codes: list[str]) -> None:
    _, problems = check_options({**GIVEN, "report_to": report_to, "tracker_image_layout": "table"})
    assert [problem.code for problem in problems if problem.option == "tracker_image_layout"] == codes


class Broken(Tracker):
    def __init__(self, facts: RunFacts) -> None:
        self.count = 0

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        raise ConnectionError("the tracker's server is on fire")

    def image(self, step: int, title: str, path: Path, caption: str) -> None:
        raise AssertionError("a failed tracker is not called again")

    def clip(self, step: int, title: str, path: Path, caption: str) -> None:
        raise AssertionError("a failed tracker is not called again")

    def close(self) -> None:
        raise AssertionError("a failed tracker is not called again")


def test_failed_tracker_is_a_warning_and_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "MAKERS", {"tensorboard": Broken})
    run = run_with_images(tmp_path, report_to="tensorboard")
    assert (run.code, run.step) == (ExitCode.COMPLETED, 3)
    (warning,) = warnings(run)
    assert "on fire" in warning


def test_tracker_that_cannot_start_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(facts: RunFacts) -> Tracker:
        raise ImportError("no such library")

    monkeypatch.setattr(sink, "MAKERS", {"wandb": refuse})
    run = train_here(tmp_path, report_to="wandb")
    assert run.code is ExitCode.COMPLETED
    assert ["no such library" in warning for warning in warnings(run)] == [True]


def test_emit_does_not_wait_for_a_slow_tracker() -> None:
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
def test_parse_trackers_reads_lists(text: str, wanted: tuple[str, ...]) -> None:
    assert parse_trackers(text) == wanted


@pytest.mark.parametrize(("text", "word"), [("wandb,comet_ml", "comet_ml is not available"), ("wandb,tensorbord", "'tensorbord'")])
def test_unknown_tracker_is_a_problem(text: str, word: str) -> None:
    _, problems = check_options({**GIVEN, "report_to": text})
    (problem,) = [problem for problem in problems if problem.option == "report_to"]
    assert problem.code == "unknown_tracker"
    assert word in problem.message


def test_wandb_login_is_a_key_or_a_line_of_netrc(tmp_path: Path) -> None:
    assert has_wandb_login({"WANDB_API_KEY": "x" * 40})
    assert not has_wandb_login({"HOME": str(tmp_path)})
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_wandb_login({"HOME": str(tmp_path)})
    (tmp_path / ".netrc").write_text("machine example.com login user password secret\n")
    assert not has_wandb_login({"HOME": str(tmp_path)})

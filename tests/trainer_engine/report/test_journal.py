"""The report reads journals, including damaged ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.helpers.told_runs import ToldRun
from trainer_engine.contract.events import Notification
from trainer_engine.report.journal import read_contents


def test_read_contents_keeps_the_order_of_steps_and_checkpoints(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1, 0.5, rate=1e-5)
    run.step(2, None, rate=2e-5)
    run.step(3, math.inf)
    run.checkpoint(3)
    contents = read_contents(run.folder.journal)
    assert contents.steps.tolist() == [1, 2, 3] and contents.total_steps == 100
    assert contents.losses[0] == 0.5 and math.isnan(contents.losses[1]) and math.isnan(contents.losses[2])
    assert contents.learning_rates.tolist() == [1e-5, 2e-5, 1e-4]
    assert contents.checkpoints == [3]


def test_line_with_other_fields_is_read(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    line = json.loads(run.folder.journal.read_text())
    line["data"] = {"loss": 0.25, "step": 2, "learning_rate": None, "more": {}, "total_steps": 9}
    with run.folder.journal.open("a") as journal:
        journal.write(json.dumps(line, separators=(",", ":")) + "\n")
    contents = read_contents(run.folder.journal)
    assert contents.steps.tolist() == [1, 2] and contents.losses[1] == 0.25 and math.isnan(contents.learning_rates[1])


def test_evaluation_losses_have_the_steps_of_their_evaluation(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.evaluation(0, {"eval_loss/held-out": 0.75, "eval_loss/held-out/q1": 0.5, "eval_loss_ema/held-out": 0.8})
    for step in (1, 2):
        run.step(step, metrics={"eval_loss/held-out": 0.75})
    run.evaluation(2, {"eval_loss/held-out": None, "eval_loss_ema/held-out": 0.7})
    run.journal.emit(Notification(code="resumed", message="evaluation", details={"step": 2}))
    found = read_contents(run.folder.journal).evaluations
    assert found["eval_loss_ema/held-out"] == [(0, 0.8), (2, 0.7)] and len(found) == 2
    first, (step, lost) = found["eval_loss/held-out"]
    assert (first, step) == ((0, 0.75), 2) and math.isnan(lost)


def test_previews_are_skipped_and_prompts_come_from_the_event(tmp_path: Path) -> None:
    run = ToldRun(tmp_path / "run")
    run.image(0, "red", kind="base_model")
    run.image(4, "red", kind="intermediary")
    run.image(4, "red", name="validation_ema", prompt="a red boat", size=(64, 32))
    base, trained = read_contents(run.folder.journal).images
    assert (base.step, base.is_base, base.name, base.prompt, base.size) == (0, True, "validation", "a white boat", (64, 64))
    assert (trained.step, trained.is_base, trained.name, trained.prompt, trained.size) == (
        4,
        False,
        "validation_ema",
        "a red boat",
        (64, 32),
    )
    assert trained.file.is_file()


@pytest.mark.parametrize(
    "damage",
    [
        b"not json\n",
        b'{"seq":9,"type":"validation.image",\n',
        b'{"seq":9,"type":"validation.image","data":null}\n',
        b'{"seq":9,"type":"validation.image","data":{"global_step":1,"validation_type":"final"},"images":[{"file":"a.png"},null]}\n',
        b'{"seq":9,"type":"training.progress","data":{"step":2',
        b'{"seq":9,"type":"training.progress","data":{"step":2,"total_steps":1,"loss":1' + b"0" * 400 + b"}}\n",
        b'{"seq":9,"type":"training.progress","data":{"step":' + b"9" * 30 + b',"total_steps":1,"epoch":1,"loss":1,"learning_rate":1,}}\n',
        b'{"seq":9,"type":"training.checkpoint","checkpoint":null}\n',
        b'{"seq":9,"type":"training.checkpoint","checkpoint":' + b"[" * 99_999 + b"\n",
        b'{"seq":9,"type":"notification","data":{"code":"evaluation","details":[]}}\n',
    ],
)
def test_damaged_and_partial_lines_are_skipped(tmp_path: Path, damage: bytes) -> None:
    run = ToldRun(tmp_path / "run")
    run.step(1)
    with run.folder.journal.open("ab") as journal:
        journal.write(damage)
    contents = read_contents(run.folder.journal)
    assert (contents.steps.tolist(), len(contents.losses), len(contents.learning_rates)) == ([1], 1, 1)
    assert (contents.images, contents.checkpoints, contents.evaluations) == ([], [], {})

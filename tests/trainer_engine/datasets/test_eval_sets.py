"""Held-out sets are looked at like the others, and have no part in the length of an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.pictures import generate_images
from tests.trainer_engine.datasets.test_report import codes, entry, report_of
from trainer_engine.contract.errors import Level
from trainer_engine.datasets.summary import summarise


def held_out(folder: Path, **fields: Any) -> dict[str, Any]:
    return entry(folder, dataset_type="eval", **fields)


def test_images_of_an_eval_set_are_examined_and_lengthen_no_epoch(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=6)
    generate_images(tmp_path / "other", count=2)
    report = report_of(entry(tmp_path / "set"), held_out(tmp_path / "other"), train_batch_size=4)
    assert [problem for problem in codes(report) if problem[1] is Level.ERROR] == []
    assert (report.samples_per_epoch, report.steps_per_epoch) == (6, 2)
    [summary] = summarise(report)["eval_datasets"]
    assert (summary["id"], summary["usable"], summary["samples_per_epoch"]) == ("other", 2, 0)
    assert [bucket["images"] for bucket in summary["buckets"]] == [2]
    assert len(summarise(report)["datasets"]) == 1


def test_problems_of_an_eval_set_are_reported(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=2)
    generate_images(tmp_path / "small", count=2, size=(40, 40))
    generate_images(tmp_path / "silent", count=2)
    report = report_of(
        entry(tmp_path / "set"),
        held_out(tmp_path / "small", minimum_image_size=64),
        held_out(tmp_path / "silent", caption_strategy="textfile"),
        held_out(tmp_path / "gone"),
    )
    errors = {problem.option: problem for problem in report.problems if problem.level is Level.ERROR}
    assert {option: problem.code for option, problem in errors.items()} == {
        "dataloader[1].instance_data_dir": "no_usable_images",
        "dataloader[2].instance_data_dir": "no_usable_images",
        "dataloader[3].instance_data_dir": "missing_folder",
    }
    assert "can be evaluated on" in errors["dataloader[1].instance_data_dir"].message


def test_images_that_are_trained_on_as_well_are_named(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=3)
    generate_images(tmp_path / "set/held-out", count=2)
    report = report_of(entry(tmp_path / "set"), held_out(tmp_path / "set/held-out"))
    [reported] = [problem for problem in report.problems if problem.code == "held_out_but_trained"]
    assert reported.level is Level.WARNING and "2 of its 2 images" in reported.message


def test_references_are_refused_where_the_model_looks_at_none(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=2)
    generate_images(tmp_path / "other", count=2)
    report = report_of(
        entry(tmp_path / "set"),
        held_out(tmp_path / "other", conditioning_data="refs"),
        entry(tmp_path / "refs", dataset_type="conditioning", conditioning_type="reference_strict"),
    )
    assert ("no_references", Level.ERROR) in codes(report)

"""The report about datasets as validate, the run's folder and the API show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.models import options_with
from tests.helpers.pictures import generate_images
from tests.trainer_engine.datasets.test_report import entry, paint, report_of
from trainer_engine.datasets.crops import crop_window
from trainer_engine.datasets.summary import LEAST_LISTED, LONGEST_CAPTION, MOST_LISTED, report_document, summarise


def of_one(folder: Path, *, fields: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = summarise(report_of(entry(folder, **(fields or {})), **options))["datasets"][0]
    return found


def test_reasons_are_counted_without_the_numbers_of_each_file(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", a=(40, 40), b=(41, 43), c=(300, 64), good=(90, 90))
    (folder / "broken.png").write_bytes(b"")
    found = of_one(folder, fields={"minimum_image_size": 64, "maximum_aspect_ratio": 3})
    assert found["left_out_count"] == 4
    assert found["left_out_reasons"] == [
        {"reason": "… is below minimum_image_size=64 pixels", "files": 2},
        {"reason": "the file is empty (0 bytes)", "files": 1},
        {"reason": "its aspect … is above maximum_aspect_ratio=3", "files": 1},
    ]


def test_short_buckets_say_how_often_their_images_are_seen(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", **{f"p{number}": (64, 64) for number in range(9)}, tall=(64, 128))
    found = of_one(folder, train_batch_size=4)
    assert found["repeated"] == {"buckets": 1, "images": 1, "most_times_seen": 4.0}
    assert [(bucket["images"], bucket["batches"], bucket["times_seen"]) for bucket in found["buckets"]] == [(1, 1, 4.0), (9, 3, 1.333)]
    assert of_one(folder)["repeated"] == {"buckets": 0, "images": 0, "most_times_seen": 0.0}


def test_crops_are_those_that_training_cuts(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=7, size=(200, 100))
    report = report_of(entry(tmp_path / "set", crop=True, crop_style="random"), seed=5)
    samples = {sample.name: sample for sample in report.sets[0].samples}
    crops = summarise(report)["datasets"][0]["crops"]
    assert len(crops) == 3
    for crop in crops:
        sample = samples[crop["path"]]
        assert tuple(crop["box"][:2]) == crop_window(sample, 5) and crop["size"] == [200, 100] and crop["resized"] == [128, 64]
        assert (crop["box"][2] - crop["box"][0], crop["box"][3] - crop["box"][1]) == sample.target


def test_captions_are_shown_cut_and_counted(tmp_path: Path) -> None:
    [image] = generate_images(tmp_path / "set", count=1)
    image.with_suffix(".txt").write_text("\n".join(["short", "long " * 100, *map(str, range(5))]))
    [example] = of_one(tmp_path / "set", fields={"caption_strategy": "textfile"})["captions"]
    assert (example["path"], example["count"], example["captions"][0]) == (image.name, 7, "short")
    assert len(example["captions"]) == 3 and len(example["captions"][1]) == LONGEST_CAPTION + 1


def test_batches_say_how_the_last_step_is_filled_up(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=7)
    found = summarise(report_of(entry(tmp_path / "set"), train_batch_size=2, gradient_accumulation_steps=3))["batches"]
    assert (found["train_batch_size"], found["gradient_accumulation_steps"], found["num_processes"], found["filled_up"]) == (2, 3, 1, 2)
    assert found["text"] == "a step takes 3 x train_batch_size 2; the last step of an epoch is filled up with 2 of its first batches"
    assert summarise(report_of(entry(tmp_path / "set")))["batches"]["text"] == "train_batch_size 1"


def test_a_set_with_batches_of_its_own_is_counted_by_them(tmp_path: Path) -> None:
    generate_images(tmp_path / "a", count=6)
    generate_images(tmp_path / "b", count=6)
    found = summarise(report_of(entry(tmp_path / "a"), entry(tmp_path / "b", train_batch_size=3), train_batch_size=2))
    assert [(one["batch_size"], one["batches_per_epoch"]) for one in found["datasets"]] == [(2, 3), (3, 2)]
    assert found["steps_per_epoch"] == 5


def test_the_report_of_many_sets_stays_small(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", **{f"p{number:03}": (64, 64 + 4 * number) for number in range(300)})
    for number in range(250):
        (folder / f"bad{number}.png").write_bytes(b"x")
    alone = of_one(folder)
    assert (len(alone["left_out"]), alone["left_out_count"]) == (MOST_LISTED, 250)
    together = report_of(*(entry(folder, id=f"set{number}") for number in range(30)))
    each = [len(one["left_out"]) for one in summarise(together)["datasets"]]
    assert max(each) < MOST_LISTED and min(each) >= LEAST_LISTED
    assert len(json.dumps(summarise(together))) < 4_000_000


def test_the_document_of_a_run_has_its_length(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=4)
    options = options_with(max_train_steps=0, num_train_epochs=3, train_batch_size=1)
    document = json.loads(json.dumps(report_document(report_of(entry(tmp_path / "set")), options)))
    assert (document["steps"], document["epochs"], document["steps_per_epoch"]) == (12, 3, 4)

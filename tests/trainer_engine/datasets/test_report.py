"""What validate and training both hear about the datasets."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.pictures import generate_images
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, errors_in
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport, SetReport
from trainer_engine.datasets.summary import summarise


def report_of(*entries: dict[str, Any], index_dir: Path | None = None, **options: Any) -> DatasetReport:
    values = {
        "model_family": "pixart_sigma",
        "model_type": "full",
        "output_dir": "/out",
        "data_backend_config": "/x.json",
        "max_train_steps": 10,
    }
    typed = parse_options({**values, "num_train_epochs": 0, "train_batch_size": 1, **options})
    dataloader, problems = parse_dataloader(list(entries), typed)
    assert errors_in(problems) == []
    spec = find_spec(typed.model.model_family)
    assert spec is not None
    return examine(dataloader, typed, spec, index_dir=index_dir)


def entry(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"id": folder.name, "instance_data_dir": str(folder), "resolution": 64, "resolution_type": "pixel", **fields}


def only(report: DatasetReport) -> SetReport:
    [found] = report.sets
    return found


def codes(report: DatasetReport) -> list[tuple[str, Level]]:
    return [(problem.code, problem.level) for problem in report.problems]


def paint(folder: Path, **sizes: tuple[int, int]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        Image.new("RGB", size).save(folder / f"{name}.png")
    return folder


def test_a_good_folder_is_reported_without_a_note(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=6)
    report = report_of(entry(tmp_path / "set"))
    assert report.problems == []
    found = only(report)
    assert (found.files, len(found.samples), found.left_out) == (6, 6, [])
    assert found.buckets == {"1 (64x64)": [0, 1, 2, 3, 4, 5]}
    assert found.samples[0].captions[0].startswith("a circle of hue")


def test_each_sample_knows_its_sizes(tmp_path: Path) -> None:
    [wide, high] = only(report_of(entry(paint(tmp_path / "set", a=(300, 100), b=(100, 200))))).samples
    assert (wide.width, wide.height, wide.resized, wide.target, wide.bucket) == (300, 100, (192, 64), (192, 64), "3 (192x64)")
    assert (high.resized, high.target) == ((64, 128), (64, 128))
    assert wide.location == str(tmp_path / "set" / "a.png")


def test_pictures_are_cropped_to_squares_if_the_option_is_set(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", a=(300, 100), b=(100, 200), c=(90, 90))
    report = report_of(entry(folder, crop=True, crop_style="center"))
    assert list(only(report).buckets) == ["1 (64x64)"]
    assert {sample.crop.style for sample in only(report).samples} == {"center"}


def test_pictures_go_to_the_closest_aspect(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", a=(300, 100), b=(100, 190), c=(90, 90))
    report = report_of(entry(folder, crop=True, crop_aspect="closest", crop_aspect_buckets=[0.5, 1, 2]))
    assert [sample.crop.aspect for sample in only(report).samples] == [2, 0.5, 1]


def test_random_aspects_are_the_same_each_time(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", **{f"p{number}": (100, 100) for number in range(30)})
    fields = {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 1, 2]}
    first, second = (only(report_of(entry(folder, **fields))).samples for _ in range(2))
    assert first == second
    assert {sample.crop.aspect for sample in first} == {0.5, 1, 2}


def test_random_aspects_enlarge_an_image_no_more_than_it_may_be(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", **{f"p{number}": (100, 60) for number in range(30)})
    fields = {"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0.5, 1, 2, 3]}
    free, limited, square = (
        {sample.crop.aspect for sample in only(report_of(entry(folder, **fields, **limit))).samples}
        for limit in ({}, {"max_upscale_threshold": 0.3}, {"max_upscale_threshold": 0.0})
    )
    assert (free, limited, square) == ({0.5, 1, 2, 3}, {1, 2}, {1})


def test_cropped_pictures_above_the_maximum_are_brought_to_the_downsample_size(tmp_path: Path) -> None:
    fields = {"maximum_image_size": 200, "target_downsample_size": 128}
    folder = paint(tmp_path / "set", large=(400, 800), small=(150, 300))
    cropped = only(report_of(entry(folder, crop=True, **fields))).samples
    assert [sample.resized for sample in cropped] == [(128, 256), (64, 128)]
    whole = only(report_of(entry(folder, crop=False, **fields))).samples
    assert [sample.resized for sample in whole] == [(64, 128), (64, 128)]


def test_all_missing_folders_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    report = report_of(entry(tmp_path / "a"), entry(tmp_path / "b"), entry(tmp_path / "file"))
    assert [(problem.option, problem.code) for problem in report.problems] == [
        ("dataloader[0].instance_data_dir", "missing_folder"),
        ("dataloader[1].instance_data_dir", "missing_folder"),
        ("dataloader[2].instance_data_dir", "not_a_folder"),
    ]


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert codes(report_of(entry(tmp_path / "set"))) == [("no_images", Level.ERROR)]


def test_broken_files_are_named_and_left_out(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", good=(64, 64))
    whole = (folder / "good.png").read_bytes()
    for name, content in {"cut.png": whole[:60], "text.jpg": b"hello", "zero.jpg": b""}.items():
        (folder / name).write_bytes(content)
    report = report_of(entry(folder))
    assert codes(report) == [("files_broken", Level.WARNING)]
    for name in ("cut.png", "text.jpg", "zero.jpg"):
        assert name in report.problems[0].message
    assert [file.name for file in only(report).left_out] == ["cut.png", "text.jpg", "zero.jpg"]
    assert len(only(report).samples) == 1


def test_images_without_a_caption_are_named_and_left_out(tmp_path: Path) -> None:
    drawn = generate_images(tmp_path / "set", count=4, captions="textfile")
    drawn[0].with_suffix(".txt").unlink()
    report = report_of(entry(tmp_path / "set", caption_strategy="textfile"))
    assert [(file.name, file.reason) for file in only(report).left_out] == [(drawn[0].name, "it has no .txt file of the same name")]
    assert only(report).samples[0].captions[0].startswith("a ")


def test_filters_leave_a_note(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", tiny=(40, 40), wide=(640, 64), good=(64, 64))
    report = report_of(entry(folder, minimum_image_size=64, maximum_aspect_ratio=3))
    assert codes(report) == [("files_filtered", Level.NOTE)]
    assert {file.name: file.broken for file in only(report).left_out} == {"tiny.png": False, "wide.png": False}


def test_a_folder_without_usable_images_is_reported_with_the_reasons(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", a=(40, 40), b=(40, 40))
    [error] = errors_in(report_of(entry(folder, minimum_image_size=64)).problems)
    assert error.code == "no_usable_images"
    assert "2 times: 40x40 is below minimum_image_size=64 pixels" in error.message


def test_a_dataset_too_small_for_a_batch_is_kept_with_a_note(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", a=(64, 64), b=(64, 64), c=(64, 128))
    report = report_of(entry(folder), train_batch_size=2)
    assert codes(report) == [("bucket_too_small", Level.NOTE)] and "1 image, seen 2 times" in report.problems[0].message
    assert report.steps_per_epoch == 2
    assert report_of(entry(folder, repeats=1), train_batch_size=2).problems == []
    assert report_of(entry(folder), gradient_accumulation_steps=8).problems == []


def test_a_set_with_probability_0_need_not_fill_a_step(tmp_path: Path) -> None:
    generate_images(tmp_path / "a", count=4)
    report = report_of(entry(tmp_path / "a"), entry(paint(tmp_path / "b", x=(64, 64)), probability=0), train_batch_size=2)
    assert report.problems == []
    assert report.samples_per_epoch == 4


def test_epochs_are_counted_over_buckets_and_sets(tmp_path: Path) -> None:
    folder = paint(tmp_path / "a", a=(64, 64), b=(64, 64), c=(64, 64), d=(64, 128), e=(64, 128))
    generate_images(tmp_path / "b", count=2)
    report = report_of(entry(folder), entry(tmp_path / "b", repeats=2), train_batch_size=2, allow_dataset_oversubscription=True)
    assert report.samples_per_epoch == 3 + 2 + 6
    assert report.batches_per_epoch == 2 + 1 + 3
    assert report.steps_per_epoch == 6


def test_a_subset_is_chosen_by_the_id_alone(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=12)
    names = [[sample.name for sample in only(report_of(entry(tmp_path / "set", max_num_samples=5))).samples] for _ in range(2)]
    other = [sample.name for sample in only(report_of(entry(tmp_path / "set", id="other", max_num_samples=5))).samples]
    assert names[0] == names[1] == sorted(names[0])
    assert len(names[0]) == len(other) == 5
    assert names[0] != other


def test_an_alignment_below_the_familys_is_raised(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=2)
    report = report_of(entry(tmp_path / "set", resolution=96), aspect_bucket_alignment=32)
    assert codes(report) == [("raised_for_family", Level.NOTE), ("resolution_rounded", Level.NOTE)]
    assert only(report).samples[0].target == (128, 128)
    assert only(report_of(entry(tmp_path / "set", resolution=100), aspect_bucket_alignment=128)).samples[0].target == (128, 128)


@pytest.mark.parametrize(
    "kind,asked,edge", [("pixel", 100, 128), ("pixel_area", 500, 512), ("pixel_area", 720, 768), ("pixel", 1024, 0), ("area", 0.3, 0)]
)
def test_a_resolution_that_squares_do_not_have_is_noted(tmp_path: Path, kind: str, asked: float, edge: int) -> None:
    generate_images(tmp_path / "set", count=2)
    report = report_of(entry(tmp_path / "set", resolution=asked, resolution_type=kind))
    assert [(one.code, one.level, one.expected) for one in report.problems] == [("resolution_rounded", Level.NOTE, f"such as {edge}")][
        : edge > 0
    ]
    assert not edge or only(report).samples[0].target == (edge, edge)


def test_the_summary_is_json_and_adds_up(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", a=(64, 64), b=(64, 128), c=(64, 128))
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as stream:
        stream.write(b"no picture")
    summary = json.loads(json.dumps(summarise(report_of(entry(folder)))))
    [reported] = summary["datasets"]
    assert (reported["id"], reported["files"], reported["usable"], reported["left_out_count"]) == ("set", 4, 3, 1)
    assert reported["left_out"] == [{"path": "caf\\xe9.png", "reason": "it is not an image, despite its name"}]
    assert reported["buckets"][0] == {
        "aspect": 0.5,
        "width": 64,
        "height": 128,
        "images": 2,
        "samples": 2,
        "batches": 2,
        "times_seen": 1.0,
    }
    assert summary["samples_per_epoch"] == sum(bucket["samples"] for bucket in reported["buckets"]) == 3


def test_messages_name_some_files_and_count_the_rest(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", good=(64, 64))
    for number in range(15):
        (folder / f"bad{number:02}.png").write_bytes(b"x")
    [warning] = report_of(entry(folder)).problems
    assert "15 of 16 files" in warning.message and "and 5 more" in warning.message


def test_examining_a_dataset_writes_nothing(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=3)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    report_of(entry(tmp_path / "set"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_memory_of_sizes_gives_the_same_report(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=3)
    reports = [only(report_of(entry(tmp_path / "set"), index_dir=tmp_path / "index")).samples for _ in range(2)]
    assert reports[0] == reports[1] == only(report_of(entry(tmp_path / "set"))).samples


def test_samples_survive_the_way_to_another_process(tmp_path: Path) -> None:
    generate_images(tmp_path / "set", count=1)
    [sample] = only(report_of(entry(tmp_path / "set"))).samples
    assert pickle.loads(pickle.dumps(sample)) == sample


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"resolution": 1.0, "resolution_type": "area"}, (1280, 832)),
        ({"resolution": 1024, "resolution_type": "pixel_area"}, (1280, 832)),
        ({"resolution": 512, "resolution_type": "pixel"}, (768, 512)),
    ],
)
def test_each_unit_of_resolution_is_honoured(tmp_path: Path, fields: dict[str, Any], size: tuple[int, int]) -> None:
    assert only(report_of(entry(paint(tmp_path / "set", a=(300, 200)), **fields))).samples[0].target == size


@pytest.mark.parametrize(("sampling", "at_start"), [("auto-weighting", 0.5), ("uniform", 0.2)])
def test_the_report_has_the_share_of_each_set(tmp_path: Path, sampling: str, at_start: float) -> None:
    generate_images(tmp_path / "small", count=2)
    generate_images(tmp_path / "large", count=8)
    sets = [entry(tmp_path / "small", repeats=7), entry(tmp_path / "large", probability=4.0 if sampling == "uniform" else 2.0)]
    small, large = summarise(report_of(*sets, data_backend_sampling=sampling))["datasets"]
    assert small["share"]["at_start"] == pytest.approx(at_start)
    assert small["share"]["of_epoch"] + large["share"]["of_epoch"] == pytest.approx(1)
    assert small["share"]["of_epoch"] == pytest.approx(16 / 24)
    assert large["share"]["text"].endswith("33.3 % over the complete epoch")


def test_pictures_beyond_the_limits_of_aspects_are_named(tmp_path: Path) -> None:
    paint(tmp_path / "set", wide=(1500, 1), narrow=(1, 1500), usual=(100, 100))
    report = report_of(entry(tmp_path / "set"))
    [note] = report.problems
    assert (note.code, note.level) == ("extreme_aspect", Level.NOTE)
    assert "narrow.png; wide.png" in note.message and "usual" not in note.message
    assert [sample.target for sample in only(report).samples] == [(64, 6400), (64, 64), (6400, 64)]


def test_images_smaller_than_they_are_trained_are_counted_for_networks_that_see_sizes(tmp_path: Path) -> None:
    folder = paint(tmp_path / "set", large=(300, 300), exact=(128, 128), nearly=(127, 127), small=(64, 64), tiny=(40, 30))
    fields = {"resolution": 128, "resolution_type": "pixel"}
    report = report_of({**entry(folder), **fields}, model_family="sdxl")
    (found,) = [problem for problem in report.problems if problem.code == "images_enlarged"]
    assert found.level is Level.WARNING and found.option == "dataloader[0].resolution" and found.got == "2"
    assert "dataset set: 2 of 5 images are smaller than they are trained" in found.message and "tiny.png (4.8 times)" in found.message
    assert "minimum_image_size" in found.hint
    only_large = report_of({**entry(folder), **fields, "minimum_image_size": 100}, model_family="sdxl")
    assert "images_enlarged" not in {problem.code for problem in only_large.problems}
    assert "images_enlarged" not in {problem.code for problem in report_of({**entry(folder), **fields}, model_family="sd1x").problems}

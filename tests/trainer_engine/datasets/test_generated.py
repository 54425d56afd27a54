"""Generated conditioning files: known before they exist, made once, found by content, and made again if they are damaged."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter

from tests.helpers.pictures import generate_images
from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import DiskFull, Level, Problem
from trainer_engine.datasets import generated
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.generated import GeneratedSource, make_files
from trainer_engine.datasets.media.base import BrokenImage
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.samples import Sample, fingerprint

BLUR = {"type": "superresolution", "add_noise": False}


def looked_at(place: Path, *conditioning: dict[str, Any], **fields: Any) -> tuple[DatasetReport, list[Problem], Dataloader]:
    values = {"model_family": "flux", "model_flavour": "kontext", "model_type": "lora", "output_dir": str(place / "out")}
    options = parse_options({**values, "data_backend_config": "d", "max_train_steps": 1, "train_batch_size": 1})
    images = {"id": "cats", "instance_data_dir": str(place / "cats"), "conditioning": list(conditioning), "resolution": 64, **fields}
    dataloader, problems = parse_dataloader([images], options)
    spec = find_spec("flux")
    assert spec is not None
    report = examine(dataloader, options, spec)
    return report, problems + report.problems, dataloader


def cats(place: Path) -> Path:
    generate_images(place / "cats", count=3, size=(96, 80))
    generate_images(place / "cats/wide", count=2, size=(160, 80))
    return place / "cats"


def references(report: DatasetReport) -> list[Sample]:
    return [sample.references[0].sample for sample in report.sets[0].samples]


def source_of(report: DatasetReport) -> GeneratedSource:
    source = references(report)[0].source
    assert isinstance(source, GeneratedSource)
    return source


def files(place: Path) -> list[Path]:
    return sorted((place / "out/cache/conditioning_data").rglob("*.png"))


def test_validate_knows_generated_references_and_makes_none(tmp_path: Path) -> None:
    cats(tmp_path)
    report, problems, _ = looked_at(tmp_path, BLUR, crop=True, crop_style="random")
    assert not [problem for problem in problems if problem.level is not Level.NOTE]
    assert len(report.sets[0].samples) == 5
    for sample, reference in zip(report.sets[0].samples, references(report), strict=True):
        assert (reference.name, reference.width, reference.height) == (sample.name, sample.width, sample.height)
        assert (reference.resized, reference.target, reference.crop) == (sample.resized, sample.target, sample.crop)
        assert source_of(report).sha256(reference.name)
    assert not (tmp_path / "out").exists()


def test_each_file_is_the_image_after_its_generator(tmp_path: Path) -> None:
    folder = cats(tmp_path)
    report, _, _ = looked_at(tmp_path, BLUR)
    progress: list[tuple[int, int]] = []
    make_files(references(report), workers=2, on_progress=lambda *at: progress.append(at))
    assert progress[-1] == (5, 5) and len(files(tmp_path)) == 5
    for reference in references(report):
        with Image.open(folder / reference.name) as image, reference.file.open() as stream, Image.open(stream) as made:
            assert made.format == "PNG" and made.size == image.size
            assert made.tobytes() == image.convert("RGB").filter(ImageFilter.GaussianBlur(2.0)).tobytes()


def test_what_exists_is_not_made_again_whatever_the_image_is_called(tmp_path: Path) -> None:
    folder = cats(tmp_path)
    make_files(references(looked_at(tmp_path, BLUR)[0]), workers=2)
    stamps = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    (folder / "wide").rename(folder / "renamed")
    make_files(references(looked_at(tmp_path, BLUR)[0]), workers=2)
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path)} == stamps


@pytest.mark.parametrize("changed", [{"blur_radius": 3.0}, {"add_noise": True}, {"seed": 1}])
def test_other_fields_give_other_files_and_other_latents(changed: dict[str, Any], tmp_path: Path) -> None:
    cats(tmp_path)
    one, other = looked_at(tmp_path, BLUR)[0], looked_at(tmp_path, {**BLUR, **changed})[0]
    for reports in (one, other):
        make_files(references(reports), workers=2)
    assert len(files(tmp_path)) == 10
    name = references(one)[0].name
    assert source_of(one).sha256(name) != source_of(other).sha256(name)
    assert source_of(one).stat(name).version != source_of(other).stat(name).version


def test_a_changed_image_gives_another_file(tmp_path: Path) -> None:
    folder = cats(tmp_path)
    report, _, _ = looked_at(tmp_path, BLUR)
    name = references(report)[0].name
    before = source_of(report).sha256(name)
    Image.new("RGB", (96, 80), (1, 2, 3)).save(folder / name)
    assert source_of(looked_at(tmp_path, BLUR)[0]).sha256(name) != before


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone"])
def test_a_damaged_file_is_made_again_when_it_is_read(damage: str, tmp_path: Path) -> None:
    cats(tmp_path)
    report, _, _ = looked_at(tmp_path, {"type": "superresolution"})
    make_files(references(report), workers=1)
    source, name = source_of(report), references(report)[0].name
    path, whole = source.path(name), source.path(name).read_bytes()
    broken = bytearray(whole)
    broken[len(broken) // 2] ^= 16
    contents = {"flipped": bytes(broken), "cut": whole[:-20], "empty": b""}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(contents[damage])
    with source.open(name) as stream:
        assert stream.read() == whole
    assert path.read_bytes() == whole


def test_every_flipped_bit_of_a_file_is_noticed(tmp_path: Path) -> None:
    cats(tmp_path)
    report, _, _ = looked_at(tmp_path, {"type": "canny"})
    make_files(references(report), workers=1)
    content = files(tmp_path)[0].read_bytes()
    assert generated._is_sound(content)
    for place in range(8, len(content) - 12, max(1, len(content) // 150)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        assert not generated._is_sound(bytes(flipped)), place


def test_a_stop_ends_the_making_and_the_next_run_goes_on(tmp_path: Path) -> None:
    cats(tmp_path)
    report, _, _ = looked_at(tmp_path, BLUR)
    stopped = threading.Event()
    make_files(references(report), workers=1, on_progress=lambda done, total: stopped.set(), should_stop=stopped.is_set)
    made = len(files(tmp_path))
    assert 1 <= made < 5
    make_files(references(report), workers=1)
    assert len(files(tmp_path)) == 5


def test_a_broken_image_gets_no_file_and_leaves_no_temporary_one(tmp_path: Path) -> None:
    folder = cats(tmp_path)
    report, _, _ = looked_at(tmp_path, BLUR)
    broken = references(report)[0].name
    content = (folder / broken).read_bytes()
    (folder / broken).write_bytes(content[: len(content) // 2])
    make_files(references(report), workers=1)
    assert len(files(tmp_path)) == 4
    assert not list((tmp_path / "out").rglob("*.tmp"))
    with pytest.raises(BrokenImage):
        source_of(report).open(broken)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cats(tmp_path)
    report, _, _ = looked_at(tmp_path, BLUR)

    def full(path: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="generated images"):
        make_files(references(report), workers=1)
    assert not files(tmp_path)


def test_the_fingerprint_of_a_sample_follows_from_what_is_generated(tmp_path: Path) -> None:
    cats(tmp_path)

    def found(*conditioning: dict[str, Any]) -> str:
        report, _, _ = looked_at(tmp_path, *conditioning)
        return fingerprint("cats", report.sets[0].samples[0], (), lambda cache, sample: sample.source.sha256(sample.name))

    same = found(BLUR)
    assert found(BLUR) == same
    assert found({**BLUR, "blur_radius": 5}) != same
    assert found({**BLUR, "captions": ["sharpen it"]}) != same


def test_references_of_generated_sets_need_a_network_that_takes_them(tmp_path: Path) -> None:
    cats(tmp_path)
    options = parse_options(
        {
            "model_family": "pixart_sigma",
            "model_type": "full",
            "output_dir": str(tmp_path),
            "data_backend_config": "d",
            "max_train_steps": 1,
        }
    )
    entry = {"id": "cats", "instance_data_dir": str(tmp_path / "cats"), "conditioning": {"type": "canny"}}
    spec = find_spec("pixart_sigma")
    assert spec is not None
    report = examine(parse_dataloader([entry], options)[0], options, spec)
    assert ("dataloader[0].conditioning", "no_references") in {(problem.option, problem.code) for problem in report.problems}

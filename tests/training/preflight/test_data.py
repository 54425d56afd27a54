"""Datasets and batches that changed since a checkpoint are refused by ``validate``, in the words of the engine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.helpers.checked_runs import checked, codes, refusal
from tests.helpers.models import tiny_model
from tests.helpers.pictures import generate_images
from tests.helpers.tiny_run import tiny_datasets, train_here
from trainer_engine.contract.errors import CheckpointUnusable
from training.preflight import data

LORA: dict[str, Any] = {"model_type": "lora", "lora_rank": 2, "max_train_steps": 2, "caption_strategy": "textfile"}
LONGER = {**LORA, "max_train_steps": 3}
Change = Callable[[Path], dict[str, Any]]


def pictures(place: Path) -> list[Path]:
    return sorted((place / "images").rglob("*.bmp"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two steps on bitmaps, whose size in bytes follows from their size in pixels, and a copy of it."""
    place = tmp_path_factory.mktemp("trained") / "place"
    place.mkdir()
    tiny_datasets(place)
    for path in sorted((place / "images").rglob("*.png")):
        Image.open(path).convert("RGB").save(path.with_suffix(".bmp"))
        path.unlink()
    for path in pictures(place):
        path.with_suffix(".txt").write_text(f"a picture of {path.stem}")
    train_here(place, **LORA)
    return place, Path(shutil.copytree(place, place.with_name("copy")))


@pytest.fixture
def place(trained: tuple[Path, Path]) -> Path:
    """The folder of that run as it was when the run ended."""
    place, copy = trained
    shutil.rmtree(place)
    shutil.copytree(copy, place)
    return place


def added(place: Path) -> dict[str, Any]:
    shutil.copy(pictures(place)[0], place / "images/new.bmp")
    (place / "images/new.txt").write_text("new")
    return {}


def removed(place: Path) -> dict[str, Any]:
    pictures(place)[0].unlink()
    return {}


def caption_edited(place: Path) -> dict[str, Any]:
    pictures(place)[0].with_suffix(".txt").write_text("another")
    return {}


def replaced_by_as_many_bytes(place: Path) -> dict[str, Any]:
    path = pictures(place)[0]
    size = path.stat().st_size
    with Image.open(path) as image:
        ImageOps.invert(image).save(path)
    assert path.stat().st_size == size
    return {}


def undecodable(place: Path) -> dict[str, Any]:
    generate_images(place / "images/broken", count=1, size=(96, 96))
    (picture,) = (place / "images/broken").glob("*.png")
    content = bytearray(picture.read_bytes())
    content[60:-60] = bytes(len(content) - 120)
    target = pictures(place)[0]
    target.write_bytes(bytes(content))
    picture.unlink()
    return {}


CHANGES: dict[str, tuple[Change, str]] = {
    "added": (added, "1 added (new.bmp)"),
    "removed": (removed, "1 removed ("),
    "caption": (caption_edited, "1 changed ("),
    "same number of bytes": (replaced_by_as_many_bytes, "1 changed ("),
    "undecodable": (undecodable, "1 removed ("),
    "id": (lambda place: {"datasets": tiny_datasets(place, id="renamed")}, "dataset renamed is new"),
    "repeats": (lambda place: {"datasets": tiny_datasets(place, repeats=3)}, "dataset pictures: repeats was 0 and is 3"),
    "probability": (lambda place: {"datasets": tiny_datasets(place, probability=0.5)}, "probability was 1.0 and is 0.5"),
    "crop": (lambda place: {"datasets": tiny_datasets(place, crop=True, crop_style="center")}, "crop_style was random and is center"),
    "resolution": (lambda place: {"resolution": 0.02}, "dataset pictures: resolution was 64"),
    "batch": (lambda place: {"train_batch_size": 1}, "samples in a pass was 2 and is 1"),
    "accumulation": (lambda place: {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps was 1 and is 2"),
    "seed": (lambda place: {"seed": 8}, "seed was 7 and is 8"),
    "sampling": (lambda place: {"data_backend_sampling": "uniform"}, "data_backend_sampling was auto-weighting"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_validate_refuses_changed_data_in_the_engine_s_words(place: Path, name: str) -> None:
    change, said = CHANGES[name]
    options = {**LONGER, **({"resolution_type": "area"} if name == "resolution" else {}), **change(place)}
    problem = refusal(checked(place, **options))
    assert (problem.option, problem.code) == ("resume_from_checkpoint", "data_changed") and said in problem.message
    assert "i_know_what_i_am_doing" in problem.hint
    with pytest.raises(CheckpointUnusable) as refused:
        train_here(place, **options)
    assert refused.value.message == problem.message
    report = checked(place, **options, i_know_what_i_am_doing=True)
    assert not report.errors and "data_changed" in {one.code for one in report.warnings}


def test_more_processes_are_another_layout(place: Path) -> None:
    assert "samples in a pass was 2 and is 4" in refusal(checked(place, **LONGER, num_processes=2)).message


def test_images_that_nobody_has_hashed_are_left_to_the_run_above_a_limit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in pictures(place):
        os.utime(path)
    assert "contents_not_compared" not in codes(checked(place, **LONGER))
    monkeypatch.setattr(data, "MOST_READ_BYTES", 0)
    report = checked(place, **LONGER)
    assert not report.errors and "contents_not_compared" in codes(report)


def test_data_that_was_only_moved_or_touched_is_the_same(place: Path) -> None:
    for path in pictures(place):
        os.utime(path)
    assert not checked(place, **LONGER).errors
    shutil.move(place / "images", place / "elsewhere")
    (place / "images").mkdir()
    datasets = tiny_datasets(place, instance_data_dir=str(place / "elsewhere"))
    assert not checked(place, **LONGER, datasets=datasets).errors
    assert train_here(place, **LONGER, datasets=datasets).step == 3


def test_an_image_that_never_could_be_decoded_is_not_new(tmp_path: Path) -> None:
    datasets = tiny_datasets(tmp_path)
    picture = sorted((tmp_path / "images").glob("*.png"))[0]
    content = bytearray(picture.read_bytes())
    content[60:-60] = bytes(len(content) - 120)
    picture.write_bytes(bytes(content))
    plain = {**LORA, "caption_strategy": "filename"}
    train_here(tmp_path, datasets=datasets, **plain)
    state = json.loads((tmp_path / "output/checkpoint-2/training_state.json").read_text())
    assert list(state["left_out"]["pictures"]) == [picture.name]
    assert not checked(tmp_path, datasets=datasets, **{**plain, "max_train_steps": 3}).errors


def test_contents_of_an_older_checkpoint_are_not_compared(place: Path) -> None:
    """Which holds shapes alone."""
    samples = place / "output/checkpoint-2/samples.json"
    old = {
        set_id: {name: one.partition(" ")[0] for name, one in found.items()} for set_id, found in json.loads(samples.read_text()).items()
    }
    samples.write_text(json.dumps(old))
    manifest = samples.with_name("manifest.json")
    listed = json.loads(manifest.read_text())
    del listed["files"]["samples.json"]
    manifest.write_text(json.dumps(listed))
    replaced_by_as_many_bytes(place)
    report = checked(place, **LONGER)
    assert not report.errors and "data_changed" not in codes(report)


def edits(place: Path) -> list[dict[str, Any]]:
    """Pairs of an edit and its reference, as bitmaps."""
    for name, colour in (("edits", "red"), ("references", "blue")):
        (place / name).mkdir()
        for number in range(4):
            Image.new("RGB", (80, 96), colour).save(place / name / f"{number}.bmp")
    common = {"type": "local", "crop": True, "crop_style": "center", "cache_dir_vae": str(place / "cache/edits")}
    return [
        {"id": "edits", "instance_data_dir": str(place / "edits"), "conditioning_data": ["references"], **common},
        {
            "id": "references",
            "type": "local",
            "dataset_type": "conditioning",
            "conditioning_type": "reference_strict",
            "instance_data_dir": str(place / "references"),
            "cache_dir_vae": str(place / "cache/references"),
        },
        {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "cache/text")},
    ]


def test_a_reference_that_was_replaced_by_as_many_bytes_is_changed_data(tmp_path: Path) -> None:
    datasets = edits(tmp_path)
    options: dict[str, Any] = {
        "model_family": "flux",
        "model_flavour": "kontext",
        "model": str(tiny_model("flux", flavour="kontext")),
        "model_type": "lora",
        "lora_rank": 2,
    }
    train_here(tmp_path, datasets=datasets, max_train_steps=1, **options)
    longer = {**options, "max_train_steps": 2}
    assert not checked(tmp_path, datasets=datasets, **longer).errors
    Image.new("RGB", (80, 96), "green").save(tmp_path / "references/2.bmp")
    problem = refusal(checked(tmp_path, datasets=datasets, **longer))
    assert "dataset edits: 1 changed (2.bmp)" in problem.message
    with pytest.raises(CheckpointUnusable) as refused:
        train_here(tmp_path, datasets=datasets, **longer)
    assert refused.value.message == problem.message


def test_generated_references_that_were_deleted_are_no_change_of_the_data(tmp_path: Path) -> None:
    images = tmp_path / "edits"
    generate_images(images, count=2, size=(96, 96))
    entries = [
        {"id": "edits", "instance_data_dir": str(images), "cache_dir_vae": str(tmp_path / "vae"), "conditioning": {"type": "canny"}},
        {"id": "texts", "dataset_type": "text_embeds", "cache_dir": str(tmp_path / "text")},
    ]
    options = {**LORA, "model_family": "flux", "model_flavour": "kontext", "model": str(tiny_model("flux", flavour="kontext"))}
    kontext = {**options, "caption_strategy": "filename", "train_batch_size": 1, "validation_guidance": 2.5}
    train_here(tmp_path, datasets=entries, **kontext)
    made = tmp_path / "output/cache/conditioning_data"
    assert len(list(made.rglob("*.png"))) == 2
    shutil.rmtree(made)
    resumed = {**kontext, "max_train_steps": 3, "resume_from_checkpoint": "latest"}
    assert "data_changed" not in codes(checked(tmp_path, datasets=entries, **resumed))
    assert not made.exists(), "validate generates nothing"
    changed = [{**entries[0], "conditioning": {"type": "canny", "low_threshold": 10}}, entries[1]]
    assert "data_changed" in codes(checked(tmp_path, datasets=changed, **resumed))

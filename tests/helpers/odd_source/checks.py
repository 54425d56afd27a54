"""What the files of this folder must be able to do; run by ``tests/trainer_engine/datasets/test_odd_source.py`` with the plugin."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from environments.paths import Home
from environments.resolve.run import resolve_run
from tests.helpers.caches import entries_of, state_of
from tests.helpers.checked_runs import checked
from tests.helpers.models import tiny_model
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import HereRun, Listener, tiny_datasets, tiny_options, train_here
from tests.trainer_engine.loop.test_saving import run_of
from trainer_engine.caches.decoding import sample_pixels
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.datasets.docs import page
from trainer_engine.config.datasets.names import are_datasets, later
from trainer_engine.config.families import find_spec
from trainer_engine.config.options import REGISTRY
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import errors_in
from trainer_engine.contract.events import Notification
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport
from training.preflight.run import examine_run


def packed(place: Path, folder: Path, name: str = "images.zip") -> Path:
    """An archive of all files of a folder, under their names in it."""
    with zipfile.ZipFile(place / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return place / name


def table(place: Path, rows: dict[str, Any], **columns: str) -> Path:
    """A parquet table of file names and their captions."""
    names = {"filename": "filename", "caption": "caption", **columns}
    content = pyarrow.table({names["filename"]: list(rows), names["caption"]: list(rows.values())})
    pyarrow.parquet.write_table(content, place / "rows.parquet")
    return place / "rows.parquet"


def in_archive(place: Path, **fields: Any) -> list[dict[str, Any]]:
    """The datasets of ``tiny_datasets``, with the images in an archive and their captions in a table."""
    images, texts = tiny_datasets(place)
    folder = place / "images"
    captions = {str(path.relative_to(folder)): path.stem.replace("_", " ") for path in folder.rglob("*.*")}
    images |= {"type": "zip", "archive": str(packed(place, folder)), "caption_strategy": "webshart", "source": str(table(place, captions))}
    del images["instance_data_dir"]
    return [{name: value for name, value in {**images, **fields}.items() if value is not None}, texts]


def cached_files(place: Path) -> dict[str, bytes]:
    return state_of(place / "cache")


def report_of(*entries: dict[str, Any], family: str = "pixart_sigma") -> DatasetReport:
    options = parse_options(tiny_options(Path("/out"), model="nobody/nothing", model_family=family, train_batch_size=1))
    dataloader, problems = parse_dataloader(list(entries), options)
    assert errors_in(problems) == []
    spec = find_spec(family)
    assert spec is not None
    return examine(dataloader, options, spec)


def test_a_new_file_is_a_new_choice_with_its_fields_and_help() -> None:
    assert "webshart" in REGISTRY["caption_strategy"].choices and "webshart" not in REGISTRY["caption_strategy"].later
    assert "source" not in later()
    assert are_datasets([{"type": "zip", "archive": "a.zip", "minimum_image_size": 1}])
    assert not are_datasets([{"id": "a", "archive": "notes.txt"}]), "a source's own word does not make a document a datasets file"
    text = page()
    assert "zip: a zip archive on this machine." in text and "## Further fields of sets with `zip`" in text
    assert "- `archive`: Path of the zip archive. (must be given; text)" in text


def test_a_dataset_of_the_new_source_survives_being_written_and_read(tmp_path: Path) -> None:
    options = parse_options(tiny_options(tmp_path, model="nobody/nothing"))
    dataloader, problems = parse_dataloader(in_archive(tmp_path), options)
    assert errors_in(problems) == []
    document = dataloader.as_document()
    assert "instance_data_dir" not in document[0] and document[0]["archive"] == str(tmp_path / "images.zip")
    assert parse_dataloader(document, options) == (dataloader, [])


@pytest.mark.parametrize(
    ("fields", "option", "code"),
    [
        ({"archive": None}, "archive", "missing"),
        ({"source": None}, "source", "missing"),
        ({"instance_data_dir": "/data"}, "instance_data_dir", "not_for_type"),
        ({"type": "local", "instance_data_dir": "/data"}, "archive", "not_for_type"),
        ({"caption_strategy": "filename"}, "source", "not_for_type"),
        ({"type": "zipp"}, "type", "not_a_choice"),
        ({"type": "memory"}, "type", "not_available"),
        ({"dataset_type": "text_embeds"}, "type", "not_a_choice"),
        ({"archive": ["a.zip"]}, "archive", "not_text"),
    ],
)
def test_a_wrong_field_of_a_source_is_reported_at_validation(tmp_path: Path, fields: dict[str, Any], option: str, code: str) -> None:
    options = parse_options(tiny_options(tmp_path, model="nobody/nothing"))
    _, problems = parse_dataloader(in_archive(tmp_path, **fields), options)
    assert (f"dataloader[0].{option}", code) in [(problem.option, problem.code) for problem in errors_in(problems)]


def test_a_set_that_moves_into_an_archive_trains_to_the_same_bytes_and_encodes_nothing_again(tmp_path: Path) -> None:
    local = train_here(tmp_path)
    before, weights = cached_files(tmp_path), local.weights()
    shutil.rmtree(tmp_path / "output")
    datasets = in_archive(tmp_path)
    shutil.rmtree(tmp_path / "images")
    moved = train_here(tmp_path, datasets=datasets)
    assert before and cached_files(tmp_path) == before
    assert moved.weights() == weights


def test_a_run_resumes_after_its_set_moved_into_an_archive(tmp_path: Path) -> None:
    straight = train_here(tmp_path / "straight")
    train_here(tmp_path / "moved", stop_after=2)
    resumed = train_here(tmp_path / "moved", datasets=in_archive(tmp_path / "moved"), resume_from_checkpoint="latest")
    assert resumed.step == 4 and resumed.weights() == straight.weights()
    assert not [event for event in resumed.heard.of(Notification) if event.code == "data_changed"]


def test_validate_reports_on_an_archive(tmp_path: Path) -> None:
    report = checked(tmp_path, datasets=in_archive(tmp_path, train_batch_size=None))
    assert report.errors == []
    [images] = report.understood["datasets"]
    assert (images["folder"], images["usable"], images["files"]) == (str(tmp_path / "images.zip"), 8, 8)


def test_the_path_of_an_archive_is_resolved_and_must_lie_in_the_roots(tmp_path: Path) -> None:
    place, outside = tmp_path / "home", tmp_path / "outside"
    place.mkdir()
    outside.mkdir()
    datasets = in_archive(place)
    home = Home(place, roots=())
    home.config.mkdir()

    def problems(archive: str) -> list[tuple[str, str]]:
        options = tiny_options(place)
        Path(options["data_backend_config"]).write_text(json.dumps([{**datasets[0], "archive": archive}, datasets[1]]))
        resolved = resolve_run(home, {}, {f"--{name}": value for name, value in options.items()})
        report = examine_run(resolved, home, {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")})
        return [(problem.option, problem.code) for problem in report.errors if problem.option.startswith("dataloader")]

    assert problems("images.zip") == []
    stranger = packed(outside, place / "images")
    assert ("dataloader[0].archive", "outside_roots") in problems(str(stranger))
    assert [option for option, _ in problems("gone.zip")] == ["dataloader[0].archive"]


def test_broken_archives_tables_and_members_are_each_named_once(tmp_path: Path) -> None:
    [images, _] = in_archive(tmp_path)
    (tmp_path / "cut.zip").write_bytes((tmp_path / "images.zip").read_bytes()[:100])
    (tmp_path / "text.zip").write_text("no archive")
    for name in ("cut.zip", "text.zip"):
        [problem] = report_of({**images, "archive": str(tmp_path / name)}).problems
        assert (problem.option, problem.code) == ("dataloader[0].archive", "unreadable_folder") and "the archive" in problem.message
    [problem] = report_of({**images, "archive": str(tmp_path / "gone.zip")}).problems
    assert problem.code == "missing_folder"
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    for field, value in (("source", str(tmp_path / "cut.parquet")), ("table_caption", "words"), ("source", str(tmp_path / "gone"))):
        [problem] = report_of({**images, field: value}).problems
        assert (problem.option, problem.code) == ("dataloader[0].caption_strategy", "unreadable_captions")


def test_members_that_cannot_be_used_are_left_out_with_their_reason(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    for name in ("good", "blank", "no_row", "deep/good"):
        Image.new("RGB", (96, 96), "red").save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"nothing")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "notes.txt").write_text("ignored")
    rows = table(tmp_path, {"good.png": "a square", "blank.png": " ", "broken.png": "x", "deep/good.png": "deep"})
    entry = {"id": "zip", "type": "zip", "archive": str(packed(tmp_path, folder)), "caption_strategy": "webshart", "source": str(rows)}
    [found] = report_of({**entry, "resolution": 64}).sets
    assert [(sample.name, sample.captions) for sample in found.samples] == [("deep/good.png", ("deep",)), ("good.png", ("a square",))]
    reasons = {file.name: file.reason for file in found.left_out}
    assert sorted(reasons) == ["blank.png", "broken.png", "drawing.svg", "no_row.png"]
    assert reasons["no_row.png"] == "the table has no row for it" and reasons["broken.png"] == "it is not an image, despite its name"
    [below] = report_of({**entry, "archive_folder": "deep", "caption_strategy": "filename", "source": None, "resolution": 64}).sets
    assert [sample.name for sample in below.samples] == ["good.png"]


@pytest.mark.parametrize("kind", ["reference_strict", "reference_loose"])
def test_references_and_eval_images_lie_in_archives_as_well(tmp_path: Path, kind: str) -> None:
    [images, _] = tiny_datasets(tmp_path)
    archive = str(packed(tmp_path, tmp_path / "images"))
    partners = {"id": "refs", "type": "zip", "archive": archive, "conditioning_type": kind, "cache_dir_vae": "/cache/refs"}
    held_out = {"id": "held", "type": "zip", "archive": archive, "dataset_type": "eval", "cache_dir_vae": "/cache/held"}
    report = report_of({**images, "conditioning_data": "refs"}, partners, held_out, family="odd")
    assert errors_in(report.problems) == []
    for sample in report.sets[0].samples:
        [(_, reference)] = sample.references
        assert (reference.name, reference.location) == (sample.name, f"{archive}/{sample.name}")
    assert len(report.sets[0].samples) == len(report.eval_sets[0].samples) == 8
    few = {**partners, "archive": str(packed(tmp_path, tmp_path / "images" / "wide", "wide.zip"))}
    codes = {problem.code for problem in errors_in(report_of({**images, "conditioning_data": "refs"}, few, family="odd").problems)}
    assert "missing_reference" in codes


def hashed(place: Path) -> list[bytes]:
    """The lines about members of archives in the file of content hashes."""
    return [line for line in (place / "cache/vae/hashes.jsonl").read_bytes().splitlines() if b"images.zip/" in line]


def test_an_unchanged_member_of_an_archive_is_hashed_once(tmp_path: Path) -> None:
    train_here(tmp_path, datasets=in_archive(tmp_path), max_train_steps=1)
    first = hashed(tmp_path)
    assert len(first) == 8
    Image.new("RGB", (96, 96), "blue").save(tmp_path / "images" / "a_new_one.png")
    again = train_here(tmp_path / "again", datasets=in_archive(tmp_path), max_train_steps=1)
    assert again.code == 0 and hashed(tmp_path)[:8] == first and len(hashed(tmp_path)) == 9


def animations(folder: Path, *, count: int = 4, frames: int = 5) -> None:
    """Clips in which a red bar moves to the right, one of another length among them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        shots = [Image.new("RGB", (96, 96), (0, 0, 40 * number)) for _ in range(frames)]
        for step, shot in enumerate(shots):
            shot.paste((200, 30, 30), (16 * step, 10, 16 * step + 16, 86))
        shots[0].save(folder / f"a_bar_{number}.anim", "GIF", save_all=True, append_images=shots[1:], duration=100, loop=0, disposal=1)


def clips(place: Path) -> list[dict[str, Any]]:
    animations(place / "clips")
    [images, texts] = tiny_datasets(place)
    return [{**images, "instance_data_dir": str(place / "clips"), "dataset_type": "video", "video": {"num_frames": 5}}, texts]


def run_of_clips(place: Path, **options: Any) -> HereRun:
    return train_here(place, datasets=clips(place), model_family="odd_clips", model=str(tiny_model("odd")), **options)


def test_clips_are_measured_and_loaded_with_all_their_frames(tmp_path: Path) -> None:
    entry = clips(tmp_path)[0]
    [found] = report_of(entry, family="odd_clips").sets
    assert list(found.buckets) == ["1 (64x64) of 5 frames"]
    sample = found.samples[0]
    assert (sample.frames, sample.frame_rate, sample.target) == (5, 10.0, (64, 64))
    pixels = sample_pixels(sample, seed=0)
    assert pixels.shape == (3, 5, 64, 64)
    columns = [int(pixels[0, step, 32].argmax()) for step in range(5)]
    assert columns == sorted(columns) and len(set(columns)) == 5, "the bar moves from frame to frame"


def test_a_run_trains_on_clips_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    assert_resumes_exactly(tmp_path, run_of_clips)
    stored = next(iter(entries_of(tmp_path / "cache/vae").values()))
    assert stored["latents"].shape == (16, 2, 8, 8) and torch.isfinite(stored["latents"]).all()


def test_a_set_of_images_ignores_clips_and_one_of_clips_names_images(tmp_path: Path) -> None:
    clips_set = clips(tmp_path)[0]
    images_set = {name: value for name, value in clips_set.items() if name not in ("dataset_type", "video")}
    Image.new("RGB", (96, 96)).save(tmp_path / "clips" / "still.png")
    [found] = report_of(images_set, family="odd_clips").sets
    assert [sample.name for sample in found.samples] == ["still.png"]
    assert found.left_out == [], "clips are ignored like every file that is no image"
    [moving] = report_of(clips_set, family="odd_clips").sets
    assert list(moving.buckets) == ["1 (64x64) of 5 frames"]
    assert [file.name for file in moving.left_out] == ["still.png"]


def test_one_mask_of_a_clip_applies_to_all_of_its_frames(tmp_path: Path) -> None:
    [images, texts] = clips(tmp_path)
    (tmp_path / "masks").mkdir()
    for number in range(4):
        mask = Image.new("L", (96, 96))
        mask.paste(255, (0, 0, 48, 96))
        mask.save(tmp_path / "masks" / f"a_bar_{number}.png")
    shutil.copy(tmp_path / "clips" / "a_bar_0.anim", tmp_path / "masks" / "a_bar_9.anim")
    masks = {"id": "masks", "conditioning_type": "mask", "instance_data_dir": str(tmp_path / "masks")}
    datasets = [{**images, "conditioning_data": "masks"}, masks, texts]
    trainer, *_ = run_of(tmp_path, Listener(), datasets=datasets, model_family="odd_clips", model=str(tiny_model("odd")))
    batch = trainer.loader.load(0).passes[0]
    assert batch.loss_mask is not None and batch.latents.dim() == 5
    assert batch.loss_mask.shape == (len(batch.latents), 1, 1, *batch.latents.shape[-2:])
    assert torch.equal(batch.loss_mask[..., : batch.loss_mask.shape[-1] // 2].unique(), torch.ones(1))
    assert torch.isfinite(trainer.step.loss(batch))


def test_masks_are_generated_from_the_members_of_an_archive(tmp_path: Path) -> None:
    datasets = in_archive(tmp_path)
    datasets[0]["conditioning"] = {"type": "random_masks", "conditioning_type": "mask"}
    run = train_here(tmp_path, datasets=datasets, max_train_steps=1)
    made = list((tmp_path / "output/cache/conditioning_data/pictures_conditioning_random_masks").rglob("*.png"))
    assert run.code == 0 and len(made) == 8

"""Folders in the layout of the hub, without a hub: images beside a table, parquet files, strips, clips, pairs, many rows."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from tests.helpers.dataset_hub import png, rows, shard, shards, write
from tests.helpers.tiny_run import tiny_options
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.families import find_spec
from trainer_engine.config.json_fields import WrongValue
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import errors_in
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.hashes import FileHashes
from trainer_engine.datasets.index import discover
from trainer_engine.datasets.media import base as media_table
from trainer_engine.datasets.media.base import MediaFacts, suffixes_of
from trainer_engine.datasets.media.image import MEDIUM as IMAGES
from trainer_engine.datasets.report import DatasetReport
from trainer_engine.datasets.sources.base import SourceFile, open_source
from trainer_engine.datasets.sources.hub.columns import read_rows
from trainer_engine.datasets.sources.hub.filters import read_filter


def entry(folder: Path, **fields: Any) -> dict[str, Any]:
    made = {
        "id": "rows",
        "type": "huggingface",
        "dataset_name": str(folder),
        "caption_strategy": "huggingface",
        "cache_dir_vae": "/cache/vae",
        **fields,
    }
    return {name: value for name, value in made.items() if value is not None}


def report_of(*entries: dict[str, Any], family: str = "pixart_sigma", media: tuple[str, ...] = ("image",), **options: Any) -> DatasetReport:
    parsed = parse_options(tiny_options(Path("/out"), model="nobody/nothing", model_family=family, train_batch_size=1, **options))
    dataloader, problems = parse_dataloader(list(entries), parsed)
    assert errors_in(problems) == []
    spec = find_spec(family)
    assert spec is not None
    return examine(dataloader, parsed, replace(spec, latents=replace(spec.latents, media=media)))


def captions(report: DatasetReport) -> dict[str, tuple[str, ...]]:
    return {sample.name: sample.captions for sample in report.sets[0].samples}


IMAGES_OF_FOLDER = {"train/a.png": png(1), "train/deep/b.png": png(2), "train/c.png": png(3)}
TABLES = {
    "metadata.jsonl": b'{"file_name": "a.png", "text": "one"}\n\n{"file_name": "deep/b.png", "text": "two"}\r\n{"file_name": "gone.png"}\n',
    "metadata.csv": b'\xef\xbb\xbffile_name,text\na.png,one\ndeep/b.png,"two"\ngone.png,\n',
}


@pytest.mark.parametrize("table", TABLES)
def test_images_get_their_captions_from_the_table_beside_them(table: str, tmp_path: Path) -> None:
    write(tmp_path, {**IMAGES_OF_FOLDER, f"train/{table}": TABLES[table], "test/d.png": png(4)})
    report = report_of(entry(tmp_path))
    assert captions(report) == {"train/a.png": ("one",), "train/deep/b.png": ("two",)}
    reasons = {file.name: file.reason for file in report.sets[0].left_out}
    assert reasons == {
        "train/c.png": "its row has no caption in text",
        "train/gone.png": "its row names a file that is not there",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{broken\n", "line 1 of metadata.jsonl is not a JSON object"),
        (b"[1]\n", "line 1 of metadata.jsonl is not a JSON object"),
        (b'{"text": "x"}\n', "a row of metadata.jsonl has no file_name"),
        (b"\xff\xff\n", "is not UTF-8"),
    ],
)
def test_a_table_that_cannot_be_read_is_an_error_that_names_the_line(content: bytes, reason: str, tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "metadata.jsonl": content})
    [problem] = errors_in(report_of(entry(tmp_path)).problems)
    assert problem.option == "dataloader[0].dataset_name" and reason in problem.message


def test_cells_beyond_the_last_column_are_in_no_column() -> None:
    assert list(read_rows("metadata.csv", b"file_name,text\na.png,one,two,three\nb.png\n")) == [
        {"file_name": "a.png", "text": "one"},
        {"file_name": "b.png", "text": None},
    ]


def test_numbers_that_no_float_holds_are_no_numbers() -> None:
    with pytest.raises(WrongValue):
        read_filter({"quality_thresholds": {"a": 10**400}})
    [(_, condition), (_, too_small)] = read_filter({"quality_thresholds": {"a": 1}, "min_width": 3}).conditions()
    assert condition({"a": 10**400}) and condition(f'{{"a": {10**400}}}') and too_small(-(10**400))


def test_a_table_leads_to_no_file_outside_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(1))
    table = (
        b'{"file_name": "../secret.png", "text": "a"}\n{"file_name": "/etc/passwd", "text": "b"}\n{"file_name": "link.png", "text": "c"}\n'
    )
    folder = write(tmp_path / "set", {"a.png": png(1), "metadata.jsonl": table})
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    report = report_of(entry(folder))
    assert captions(report) == {}
    assert len(report.sets[0].left_out) == 4


def test_plain_folders_of_images_need_an_instance_prompt(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "b.jpg": b"", "c.heic": b"x"})
    [problem] = errors_in(report_of(entry(tmp_path)).problems)
    assert (problem.option, problem.code) == ("dataloader[0].caption_column", "missing")
    report = report_of(entry(tmp_path, caption_strategy="instanceprompt", instance_prompt="a thing"))
    assert captions(report) == {"a.png": ("a thing",)}
    assert {file.name: file.reason for file in report.sets[0].left_out} == {
        "b.jpg": "the file is empty (0 bytes)",
        "c.heic": ".heic files are not supported",
    }


def test_a_single_parquet_file_is_a_data_set(tmp_path: Path) -> None:
    write(tmp_path, {"mine.parquet": shard(rows(3)), "other.parquet": shard(rows(2))})
    assert list(captions(report_of(entry(tmp_path / "mine.parquet")))) == [f"mine/00000{row}.png" for row in range(3)]
    assert len(captions(report_of(entry(tmp_path)))) == 5


def test_files_of_one_name_in_two_folders_keep_their_folders(tmp_path: Path) -> None:
    write(tmp_path, {"a/0000.parquet": shard(rows(1)), "b/0000.parquet": shard(rows(1))})
    assert list(captions(report_of(entry(tmp_path)))) == ["a/0000/000000.png", "b/0000/000000.png"]


def test_bytes_paths_and_objects_are_images(tmp_path: Path) -> None:
    content = png(5)
    forms: dict[str, Any] = {
        "bytes": content,
        "object": {"bytes": content, "path": None},
        "path": "images/x.png",
        "object of a path": {"path": "images/x.png"},
    }
    for name, cell in forms.items():
        folder = write(tmp_path / name, {"rows.parquet": shard([{"image": cell, "text": name}]), "images/x.png": content})
        [sample] = report_of(entry(folder)).sets[0].samples
        assert sample.captions == (name,)
        assert sample.source.sha256(sample.name) == FileHashes(tmp_path / "hashes").of(folder / "images/x.png")


def test_an_image_column_of_lists_is_refused_with_the_other_columns(tmp_path: Path) -> None:
    write(tmp_path, {"rows.parquet": shard([{"image": [png(1)], "good": png(2), "text": "x"}])})
    [problem] = errors_in(report_of(entry(tmp_path)).problems)
    assert (problem.option, problem.code) == ("dataloader[0].image_column", "wrong_column")
    assert problem.expected == "one of good, text" and "list" in problem.message


@pytest.mark.parametrize(("right", "opened"), [(True, 4), (False, 6)])
def test_right_sizes_in_columns_spare_the_images_from_being_opened(
    right: bool, opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"rows.parquet": shard(rows(6, width=[96 if right else 1000] * 6, height=[96] * 6))})
    measured: list[str] = []
    measure = IMAGES.measure

    def counted(file: SourceFile) -> MediaFacts:
        measured.append(file.name)
        return measure(file)

    monkeypatch.setattr(media_table, "_by_suffix", lambda **_: {suffix: replace(IMAGES, measure=counted) for suffix in IMAGES.suffixes})
    report = report_of(entry(tmp_path, metadata_backend="huggingface"))
    assert {(sample.width, sample.height) for sample in report.sets[0].samples} == {(96, 96)}
    assert len([name for name in measured if right or not name.startswith("cell")]) == opened


def test_one_image_of_a_strip_is_taken(tmp_path: Path) -> None:
    strip = Image.new("RGB", (202, 100), "red")
    strip.paste("blue", (101, 0, 202, 100))
    stream = io.BytesIO()
    strip.save(stream, "PNG")
    write(tmp_path, {"rows.parquet": shard([{"image": stream.getvalue(), "text": "x"}, {"image": png(1, (1, 9)), "text": "y"}])})
    for index, colour in enumerate(((255, 0, 0), (0, 0, 255))):
        setting = {"composite_image_config": {"enabled": True, "image_count": 2, "select_index": index}}
        report = report_of(entry(tmp_path, huggingface=setting))
        [sample] = report.sets[0].samples
        assert (sample.width, sample.height) == (101, 100)
        [frame] = IMAGES.frames(sample.file)
        assert frame.getcolors() == [(101 * 100, colour)]
        assert [file.reason for file in report.sets[0].left_out] == ["it cannot be read: it is 1 pixels wide, too narrow for 2 images"]


def test_clips_are_named_and_left_out_where_nothing_reads_them(tmp_path: Path) -> None:
    write(tmp_path, {"rows.parquet": shard([{"video": {"bytes": b"x", "path": "a.xyz"}, "text": "moves"}])})
    report = report_of(entry(tmp_path, video_column="video"))
    assert [(file.name, file.reason) for file in report.sets[0].left_out] == [("rows/000000.xyz", ".xyz files are not supported")]


def test_two_columns_of_one_row_are_an_image_and_its_reference(tmp_path: Path) -> None:
    cells = [{"after": png(number), "before": png(number + 10), "text": f"edit {number}"} for number in range(4)]
    write(tmp_path, shards(1, cells))
    reference = entry(tmp_path, id="before", image_column="before", conditioning_type="reference_strict", cache_dir_vae="/cache/before")
    del reference["caption_strategy"]
    report = report_of(entry(tmp_path, image_column="after", conditioning_data="before"), reference, family="flux", model_flavour="kontext")
    assert errors_in(report.problems) == []
    for number, sample in enumerate(report.sets[0].samples):
        [(_, one)] = sample.references
        assert one.name == sample.name and one.location != sample.location
        assert one.source.open(one.name).read() == png(number + 10)


def test_measurements_are_remembered_until_a_file_changes(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"rows.parquet": shard(rows(3))})
    dataloader, _ = parse_dataloader([entry(folder)], parse_options(tiny_options(tmp_path, model="nobody/nothing")))
    [images] = dataloader.image_sets
    assert discover(open_source(images), index_dir=tmp_path / "index").opened == 3
    assert discover(open_source(images), index_dir=tmp_path / "index").opened == 0
    write(folder, {"rows.parquet": shard(rows(3, size=(40, 40)))})
    again = discover(open_source(images), index_dir=tmp_path / "index")
    assert again.opened == 3 and again.images[0].width == 40


def test_a_hundred_thousand_rows_are_listed_in_seconds(tmp_path: Path) -> None:
    count = 100_000
    image = pyarrow.StructArray.from_arrays(
        [pyarrow.array([b"\xff" * 200] * count), pyarrow.array([f"{number}.png" for number in range(count)])], ["bytes", "path"]
    )
    table = pyarrow.table({"image": image, "width": [64] * count, "height": [64] * count, "text": ["x"] * count})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=1_000)
    dataloader, _ = parse_dataloader([entry(tmp_path)], parse_options(tiny_options(tmp_path, model="nobody/nothing")))
    source = open_source(dataloader.image_sets[0])
    began = time.process_time()
    listing = source.list_files(suffixes_of(("image",)))
    assert len(listing.files) == count and time.process_time() - began < 5


def test_a_column_of_json_text_is_a_quality(tmp_path: Path) -> None:
    cells = [{"image": png(number), "text": "x", "quality_assessment": json.dumps({"q": number})} for number in range(3)]
    write(tmp_path, {"rows.parquet": shard(cells)})
    report = report_of(entry(tmp_path, huggingface={"filter_func": {"quality_thresholds": {"q": 2}}}))
    assert list(captions(report)) == ["rows/000002.jpg"]

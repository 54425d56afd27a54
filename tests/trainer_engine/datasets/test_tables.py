"""Tables of captions and sizes: every form is read, and what is wrong with one is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.helpers.caches import state_of
from tests.helpers.checked_runs import checked, codes, refusal
from tests.helpers.tiny_run import tiny_datasets, tiny_options, train_here
from trainer_engine.config.datasets import ImageSet, parse_dataloader
from trainer_engine.config.datasets.object_fields import TableFile
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import errors_in
from trainer_engine.datasets.captions.base import NoCaption, captions_of
from trainer_engine.datasets.file_rows import FileSizes
from trainer_engine.datasets.sources.hub.parquet import Table, Windows
from trainer_engine.datasets.sources.local import LocalSource
from trainer_engine.datasets.tables import UnusableTable, rows_of

FORMS = ("parquet", "jsonl", "json")


def write_table(path: Path, **columns: list[Any]) -> Path:
    """A table in the form of its suffix."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path


def images_in(place: Path) -> list[str]:
    folder = place / "images"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


def sizes_in(place: Path) -> list[tuple[int, int]]:
    found = []
    for name in images_in(place):
        with Image.open(place / "images" / name) as image:
            found.append(image.size)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_the_columns_of_each_form_are_read_in_order(tmp_path: Path, form: str) -> None:
    path = write_table(tmp_path / f"rows.{form}", name=["a", "b"], text=["ein Käfer", None], width=[3, 4])
    assert list(rows_of(path, ("width", "name", "text"))) == [(3, "a", "ein Käfer"), (4, "b", None)]
    assert list(rows_of(path, ("name", "name"))) == [("a", "a"), ("b", "b")]


@pytest.mark.parametrize(("form", "encoding"), [("jsonl", "utf-8-sig"), ("json", "utf-16"), ("json", "latin-1"), ("jsonl", "latin-1")])
def test_text_tables_are_read_in_other_encodings(tmp_path: Path, form: str, encoding: str) -> None:
    path = tmp_path / f"rows.{form}"
    row = json.dumps({"name": "a", "text": "ein Käfer"}, ensure_ascii=False)
    path.write_bytes((row if form == "jsonl" else f"[{row}]").encode(encoding))
    assert list(rows_of(path, ("name", "text"))) == [("a", "ein Käfer")]


def test_a_large_table_is_read_in_pieces(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.parquet", name=[str(n) for n in range(5_000)], width=list(range(5_000)))
    assert sum(width for _, width in rows_of(path, ("name", "width"))) == 4_999 * 2_500


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path, form: str) -> None:
    path = write_table(tmp_path / f"rows.{form}", name=["a"], text=["b"])
    with pytest.raises(UnusableTable, match="has no column 'names'; it has name, text"):
        list(rows_of(path, ("names", "text")))


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_parquet_file_that_is_cut_off_is_refused(tmp_path: Path, cut: int) -> None:
    path = write_table(tmp_path / "rows.parquet", name=["a"] * 100, text=["b"] * 100)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UnusableTable, match=r"rows\.parquet is damaged, or no parquet table"):
        list(rows_of(path, ("name",)))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"", "damaged, or no parquet table"),
        ("a.jsonl", b'{"name": "a"}\n{"name": "b', "line 2 is not valid JSON, or is cut off"),
        ("a.jsonl", b'{"name": "a"}\n\n3\n', "line 3 is no object"),
        ("a.jsonl", b"\x00\x01\x02", "line 1"),
        ("a.jsonl", b'{"name": "' + b"x" * (1 << 22), "line 1 is longer than 4 MiB"),
        ("a.json", b'[{"name": "a"}', "not valid JSON, or is cut off"),
        ("a.json", b'{"name": ["a"]}', "holds no list of objects"),
        ("a.json", b'[{"name": "a"}, "b"]', "object 2 is no object"),
    ],
)
def test_a_damaged_table_is_named_with_the_place(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableTable, match=words):
        list(rows_of(tmp_path / name, ("name",)))


def test_a_parquet_file_with_flipped_bytes_never_ends_the_process(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.parquet", name=[f"image {n}" for n in range(50)], text=["a cat"] * 50)
    whole, random = path.read_bytes(), np.random.default_rng(3)
    for _ in range(100):
        content = bytearray(whole)
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))
        path.write_bytes(content)
        try:
            rows = list(rows_of(path, ("name", "text")))
        except UnusableTable as error:
            assert "rows.parquet" in str(error)
        else:
            assert len(rows) <= 50


@pytest.mark.parametrize(
    "cells",
    [
        pyarrow.array([2**62], pyarrow.timestamp("us")),
        pyarrow.array([2**62 + 1], pyarrow.timestamp("ns")),
        pyarrow.array([2**31 - 1], pyarrow.date32()),
        pyarrow.array([2**62], pyarrow.duration("s")),
        pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]),
        pyarrow.StructArray.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["x", "x"]),
    ],
)
def test_a_cell_that_python_has_no_value_for_is_refused(tmp_path: Path, cells: Any) -> None:
    table = pyarrow.table({"text": cells})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UnusableTable, match=r"rows\.parquet is damaged, or no parquet table"):
        list(rows_of(tmp_path / "rows.parquet", ("text",)))
    with pytest.raises(OSError, match="parquet"):
        list(Table(lambda: (tmp_path / "rows.parquet").open("rb"), Windows()).read(["text"]))


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(UnusableTable, match="exists 2 times"):
        list(rows_of(tmp_path / "rows.parquet", ("text",)))


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableTable, match="cannot be read: No such file"):
        list(rows_of(tmp_path / "gone.parquet", ("name",)))


def captions(table: TableFile, name: str) -> tuple[str, ...]:
    entry = ImageSet.model_validate(
        {"position": 0, "id": "set", "instance_data_dir": "/x", "caption_strategy": "parquet", "parquet": table.model_dump()}
    )
    return captions_of(entry, LocalSource("/x"))(name)


def test_captions_come_from_the_columns_in_order(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "rows.parquet",
        file=["a", "deep/b", "c", "d"],
        short=[["a cat", " a tabby "], None, ["", None], []],
        long=["a cat on a mat", " ", None, None],
        alt=["unused", "in a folder", "", "spare"],
    )
    table = TableFile(path=str(path), filename_column="file", caption_column='["short", "long"]', fallback_caption_column="alt")
    assert captions(table, "a.png") == ("a cat", "a tabby", "a cat on a mat")
    assert captions(table, "deep/b.webp") == ("in a folder",)
    assert captions(table, "d.png") == ("spare",)
    with pytest.raises(NoCaption, match="its row in the table has no caption"):
        captions(table, "c.png")
    with pytest.raises(NoCaption, match="the table has no row for it"):
        captions(table, "b.png")


@pytest.mark.parametrize("includes", [True, False])
def test_names_of_rows_have_suffixes_or_not(tmp_path: Path, includes: bool) -> None:
    names = ["a.png", "./deep/b.jpg"] if includes else ["a", "/deep\\b"]
    path = write_table(tmp_path / "rows.jsonl", file=names, text=["one", "two"])
    table = TableFile(path=str(path), filename_column="file", caption_column="text", identifier_includes_extension=includes)
    assert (captions(table, "a.png"), captions(table, "deep/b.jpg")) == (("one",), ("two",))
    wrong = table.model_copy(update={"identifier_includes_extension": not includes})
    with pytest.raises(NoCaption, match="change identifier_includes_extension"):
        captions(wrong, "a.png")


def test_whole_numbers_are_names_and_the_last_row_counts(tmp_path: Path) -> None:
    path = write_table(tmp_path / "rows.jsonl", file=[17, 17, None, True], text=["old", "new", "x", "y"])
    assert captions(TableFile(path=str(path), filename_column="file", caption_column="text"), "17.png") == ("new",)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(3, 4, (3, 4)), (3.0, 4.0, (3, 4)), (3.5, 4, None), (0, 4, None), (-1, 4, None), (None, 4, None), ("3", 4, None), (1 << 40, 4, None)],
)
def test_only_whole_edges_are_sizes(tmp_path: Path, width: object, height: object, size: object) -> None:
    path = write_table(tmp_path / "rows.jsonl", file=["a"], w=[width], h=[height])
    sizes = FileSizes(TableFile(path=str(path), filename_column="file", width_column="w", height_column="h"))
    assert sizes.of("a.png") == size and sizes.of("b.png") is None


def with_table(place: Path, *, form: str = "parquet", lost: int = 0, **keys: Any) -> list[dict[str, Any]]:
    """The tiny datasets with captions and sizes in a table, which lacks the last ``lost`` images."""
    images, texts = tiny_datasets(place)
    names, sizes = images_in(place), sizes_in(place)
    count = len(names) - lost
    path = write_table(
        place / f"rows.{form}",
        file=names[:count],
        text=[Path(name).stem.replace("_", " ") for name in names[:count]],
        w=[size[0] for size in sizes[:count]],
        h=[size[1] for size in sizes[:count]],
    )
    table = {"path": str(path), "filename_column": "file", "caption_column": "text", "width_column": "w", "height_column": "h"}
    images |= {"caption_strategy": "parquet", "metadata_backend": "parquet"}
    return [{**images, "parquet": {**table, "identifier_includes_extension": True, **keys}}, texts]


@pytest.mark.parametrize("form", FORMS)
def test_a_set_that_gets_a_table_trains_to_the_same_bytes_and_encodes_nothing_again(tmp_path: Path, form: str) -> None:
    plain = train_here(tmp_path)
    weights = plain.weights()
    cached = state_of(tmp_path / "cache")
    table = train_here(tmp_path, datasets=with_table(tmp_path, form=form), output_dir=str(tmp_path / "again"))
    assert table.weights() == weights
    assert cached and state_of(tmp_path / "cache") == cached


def test_a_run_with_a_table_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    straight = train_here(tmp_path / "straight", datasets=with_table(tmp_path / "straight"))
    train_here(tmp_path / "halves", datasets=with_table(tmp_path / "halves"), stop_after=2)
    resumed = train_here(tmp_path / "halves", datasets=with_table(tmp_path / "halves"), resume_from_checkpoint="latest")
    assert resumed.step == 4 and resumed.weights() == straight.weights()


def test_validate_names_images_without_a_row(tmp_path: Path) -> None:
    report = checked(tmp_path, datasets=with_table(tmp_path, lost=2))
    assert report.errors == [] and {"files_broken", "sizes_missing"} <= codes(report)
    [left_out] = [problem for problem in report.problems if problem.code == "files_broken"]
    assert "2 of 8 files are left out" in left_out.message and "the table has no row for it" in left_out.message


@pytest.mark.parametrize(
    ("keys", "option", "code", "words"),
    [
        ({"width_column": "width"}, "parquet", "unreadable_table", "has no column 'width'; it has file, text, w, h"),
        ({"caption_column": ["text", "more"]}, "caption_strategy", "unreadable_captions", "has no column 'more'"),
        ({"caption_column": None}, "parquet.caption_column", "missing", "caption_strategy=parquet needs"),
        ({"height_column": ""}, "parquet.height_column", "missing", "metadata_backend=parquet needs"),
        ({"filename_column": None}, "parquet.filename_column", "missing", ""),
        ({"path": "rows.csv"}, "parquet.path", "not_a_table", ""),
        ({"path": "gone.parquet"}, "parquet.path", "not_found", ""),
        ({"path": "/etc/rows.parquet"}, "parquet.path", "not_found", ""),
        ({"captions": "text"}, "parquet.captions", "unknown_field", ""),
        ({"caption_column": [3]}, "parquet.caption_column", "not_text", ""),
    ],
)
def test_what_is_wrong_with_a_table_is_reported_at_its_key(tmp_path: Path, keys: Any, option: str, code: str, words: str) -> None:
    problem = refusal(checked(tmp_path, datasets=with_table(tmp_path, **keys)))
    assert problem.option == f"dataloader[0].{option}" and words in problem.message
    assert code in (problem.code, "not_found")


def test_a_table_that_is_cut_off_is_one_error(tmp_path: Path) -> None:
    datasets = with_table(tmp_path)
    (tmp_path / "rows.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-30])
    assert refusal(checked(tmp_path, datasets=datasets)).code == "unreadable_table"


def test_a_size_that_is_not_that_of_the_image_leaves_it_out_and_is_named(tmp_path: Path) -> None:
    datasets = with_table(tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pydict()
    table["w"][0], table["h"][0] = 200, 100
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    run = train_here(tmp_path, datasets=datasets, train_batch_size=1)
    [left_out] = [event for event in run.heard.events if getattr(event, "code", "") == "files_left_out"]
    assert "its size changed from 200x100" in left_out.message and "1 files" in left_out.message  # type: ignore[attr-defined]


def test_columns_may_be_named_by_the_options_and_a_table_that_nobody_reads_is_noted(tmp_path: Path) -> None:
    [images, texts] = with_table(tmp_path, filename_column=None, caption_column=None)
    options = parse_options(tiny_options(tmp_path, model="nobody/nothing", parquet_caption_column="text", parquet_filename_column="file"))
    dataloader, problems = parse_dataloader([images, texts], options)
    assert problems == [] and dataloader.image_sets[0].parquet is not None
    assert dataloader.image_sets[0].parquet.caption_columns == ("text",)
    assert parse_dataloader(json.loads(json.dumps(dataloader.as_document())), options) == (dataloader, [])
    _, problems = parse_dataloader([{**images, "caption_strategy": "filename", "metadata_backend": "json"}, texts], options)
    assert errors_in(problems) == [] and [problem.code for problem in problems] == ["no_effect"]
    _, problems = parse_dataloader([{**images, "parquet": None}, texts], options)
    assert [(problem.option, problem.code) for problem in problems] == [("dataloader[0].parquet", "missing")]

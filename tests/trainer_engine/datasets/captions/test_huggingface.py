"""Captions from columns: alternatives, objects, blanks, and columns that are not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.helpers.tiny_run import tiny_options
from trainer_engine.config.datasets import ImageSet, parse_dataloader
from trainer_engine.config.parse import parse_options
from trainer_engine.datasets.captions.base import CaptionsOf, NoCaption, captions_of
from trainer_engine.datasets.sources.base import FoundFile, Listing, Suffixes, WrongField
from trainer_engine.datasets.sources.hub.columns import ColumnSource, follow, read_rows, root_of
from trainer_engine.datasets.sources.local import LocalSource


@dataclass(frozen=True)
class MemoryRows(ColumnSource):
    """Rows in memory."""

    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    place: str = "memory"

    def list_files(self, suffixes: Suffixes) -> Listing:
        return Listing([self.stat(name) for name in self.rows])

    def stat(self, name: str) -> FoundFile:
        return FoundFile(name, 0, 0)

    def open(self, name: str) -> BinaryIO:
        raise FileNotFoundError(name)

    def columns(self) -> Sequence[str]:
        return tuple(dict.fromkeys(column for row in self.rows.values() for column in row))

    def column(self, path: str) -> Callable[[str], Any]:
        root = root_of("caption_column", path, self.columns())
        return lambda name: follow(self.rows[name].get(root), path.removeprefix(root).lstrip("."))


def entry(**fields: Any) -> ImageSet:
    given = {"id": "a", "type": "huggingface", "dataset_name": "a/b", "caption_strategy": "huggingface", **fields}
    dataloader, problems = parse_dataloader([given], parse_options(tiny_options(Path("/out"), model="nobody/nothing")))
    assert dataloader.image_sets, problems
    return dataloader.image_sets[0]


def captions(cells: Mapping[str, Any], **fields: Any) -> tuple[str, ...]:
    return of_rows({"row": cells}, **fields)("row")


def of_rows(rows: Mapping[str, Mapping[str, Any]], **fields: Any) -> CaptionsOf:
    return captions_of(entry(**fields), MemoryRows(rows))


def test_the_usual_columns_are_found_without_being_named() -> None:
    assert captions({"text": "one"}) == ("one",)
    assert captions({"text": "one", "caption": "two"}) == ("two",)
    assert captions({"text": "one", "caption": "two"}, caption_column="text") == ("one",)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("  one  ", ("one",)),
        (["one", "", None, "two", "one"], ("one", "two")),
        ("line one\nline two", ("line one\nline two",)),
        ("日本語 🐈", ("日本語 🐈",)),
    ],
)
def test_a_cell_gives_its_texts(cell: object, expected: tuple[str, ...]) -> None:
    assert captions({"caption": cell}) == expected


@pytest.mark.parametrize("cell", ["", "  \n", None, [], ["", None], 7, {"short": "x"}, float("nan")])
def test_a_cell_without_text_is_no_caption(cell: object) -> None:
    with pytest.raises(NoCaption, match="its row has no caption in caption"):
        captions({"caption": cell})


def test_a_path_leads_into_objects_and_a_column_with_a_dot_wins() -> None:
    cells = {"caption": {"short": "one", "deep": {"er": "two"}}, "caption.short": "three"}
    assert captions(cells, caption_column="caption.deep.er") == ("two",)
    assert captions(cells, caption_column="caption.short") == ("three",)
    with pytest.raises(NoCaption):
        captions(cells, caption_column="caption.missing")


def test_several_columns_are_alternatives_in_their_order() -> None:
    cells = {"a": "one", "b": None, "c": ["two", "one"]}
    assert captions(cells, caption_column=["c", "b", "a"]) == ("two", "one")
    with pytest.raises(NoCaption, match="a or b"):
        captions({"a": "", "b": ""}, caption_column=["a", "b"])


def test_the_instance_prompt_stands_in_front_or_instead() -> None:
    assert captions({"text": "one"}, instance_prompt="a", prepend_instance_prompt=True) == ("a one",)
    assert captions({"text": "one"}, instance_prompt="a", only_instance_prompt=True) == ("a",)


@pytest.mark.parametrize(("fields", "code"), [({"caption_column": "x"}, "column_not_found"), ({}, "missing")])
def test_a_column_that_is_not_there_is_named_with_the_others(fields: dict[str, Any], code: str) -> None:
    with pytest.raises(WrongField) as error:
        of_rows({"row": {"label": 1, "url": "x"}}, **fields)
    assert (error.value.field, error.value.code, error.value.expected) == ("caption_column", code, "one of label, url")


def test_a_caption_has_an_end() -> None:
    with pytest.raises(NoCaption, match="longer than a million"):
        captions({"text": "x" * 2_000_000})


def test_files_of_a_folder_have_no_columns() -> None:
    with pytest.raises(ValueError, match="no columns"):
        captions_of(entry(), LocalSource("/data"))


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", 'file_name,text\na.png,"one, two"\nb.png,"x\ny"\n', [("a.png", "one, two"), ("b.png", "x\ny")]),
        ("a.csv", "\ufefffile_name,text\r\na.png,one\r\n", [("a.png", "one")]),
        ("a.jsonl", '{"file_name": "a.png", "text": "one"}\n\n', [("a.png", "one")]),
        ("a.jsonl", "", []),
    ],
)
def test_tables_in_text_files_are_read(name: str, content: str, rows: list[tuple[str, str]]) -> None:
    assert [(row["file_name"], row["text"]) for row in read_rows(name, content.encode())] == rows


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b"[1]"), ("a.jsonl", b"{"), ("a.csv", b"\xff\xfe"), ("a.csv", b'a\n"' + b"x" * 2_000_000)]
)
def test_tables_that_cannot_be_read_are_errors(name: str, content: bytes) -> None:
    with pytest.raises(ValueError, match=name):
        list(read_rows(name, content))

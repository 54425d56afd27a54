"""Which files of a repository hold a split, and what its card says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from trainer_engine.datasets.sources.base import WrongField
from trainer_engine.datasets.sources.hub.layout import ChosenFiles, choose_files, matching, read_card
from trainer_engine.datasets.sources.hub.opening import converted_card, media_suffixes
from trainer_engine.datasets.sources.hub.options import RowOptions


def chosen(files: Sequence[str], card: Mapping[str, Any] | None = None, **options: Any) -> ChosenFiles:
    return choose_files(files, card or {}, RowOptions(**options), media_suffixes())


def refused(files: Sequence[str], card: Mapping[str, Any] | None = None, **options: Any) -> WrongField:
    with pytest.raises(WrongField) as error:
        chosen(files, card, **options)
    return error.value


def test_shards_say_their_split() -> None:
    files = [
        "data/train-00000-of-00002-1a2b.parquet",
        "data/train-00001-of-00002-3c4d.parquet",
        "data/test-00000-of-00001.parquet",
        "README.md",
    ]
    assert chosen(files).tables == tuple(files[:2])
    assert chosen(files, split="test").tables == (files[2],)
    assert refused(files, split="validation").expected == "one of test, train"


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train/0000.parquet", "train"),
        ("data/training/a.parquet", "train"),
        ("my_train.parquet", "train"),
        ("valid.parquet", "validation"),
        ("dev/0.parquet", "validation"),
        ("data/eval-0.parquet", "test"),
        ("rows.parquet", "train"),
        ("contest.parquet", "train"),
    ],
)
def test_words_of_names_say_the_split(file: str, split: str) -> None:
    assert chosen([file], split=split).tables == (file,)


def test_folders_say_more_than_files_and_names_of_images_say_nothing() -> None:
    images = ["train/the_test_of_time.jpg", "test/a.jpg", "train/metadata.jsonl"]
    assert chosen(images).media == ("train/the_test_of_time.jpg",)
    assert chosen(images).metadata == ("train/metadata.jsonl",)
    assert chosen(["test_drive.jpg", "b.png"]).media == ("b.png", "test_drive.jpg")


def test_files_without_a_word_are_left_out_if_others_have_one() -> None:
    assert chosen(["train.parquet", "extra.parquet"]).tables == ("train.parquet",)


def test_hidden_files_and_other_documents_are_no_data() -> None:
    files = [".hidden/a.jpg", "__MACOSX/b.jpg", "a.jpg", "notes.txt", ".gitattributes"]
    assert chosen(files).all == ("a.jpg",)


def test_the_card_lists_the_files_of_a_split() -> None:
    card = {
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "rows/*.parquet"}, {"split": "x", "path": ["b/**"]}]}
        ]
    }
    files = ["rows/a.parquet", "rows/deep/c.parquet", "b/d/e.parquet", "test.parquet"]
    assert chosen(files, card).tables == ("rows/a.parquet",)
    assert chosen(files, card, split="x").tables == ("b/d/e.parquet",)


@pytest.mark.parametrize(
    "data_files",
    [
        "a.parquet",
        ["a.parquet"],
        {"train": "a.parquet"},
        {"train": ["a.parquet", "missing.parquet"]},
        [{"split": "train", "path": "a.parquet"}],
    ],
)
def test_a_card_may_list_files_in_every_form(data_files: Any) -> None:
    assert chosen(["a.parquet", "b.parquet"], {"configs": [{"config_name": "default", "data_files": data_files}]}).tables == ("a.parquet",)


def test_one_configuration_is_read() -> None:
    card = {"configs": [{"config_name": "small", "data_dir": "small"}, {"config_name": "large", "data_dir": "large"}]}
    files = ["small/train.parquet", "large/train.parquet", "large/test.parquet"]
    assert refused(files, card).code == "configuration_needed" and refused(files, card).expected == "one of large, small"
    assert chosen(files, card, config_name="large").tables == ("large/train.parquet",)
    assert refused(files, card, config_name="huge").code == "configuration_not_found"
    card["configs"][0]["default"] = True  # type: ignore[assignment]
    assert chosen(files, card).tables == ("small/train.parquet",)
    assert chosen(files, {}, config_name="large", split="test").tables == ("large/test.parquet",)


def test_the_hubs_own_copy_has_a_folder_for_each_configuration_and_split() -> None:
    files = ["default/partial-train/0000.parquet", "default/dogs/0000.parquet", "README.md"]
    assert chosen(files, converted_card(files)).tables == (files[0],)
    assert chosen(files, converted_card(files), split="dogs").tables == (files[1],)


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("data/*.parquet", ["data/a.parquet"]),
        ("**/*.parquet", ["a.parquet", "data/a.parquet", "data/deep/b.parquet"]),
        ("**", ["a.parquet", "data/a.parquet", "data/deep/b.parquet"]),
        ("data/**", ["data/a.parquet", "data/deep/b.parquet"]),
        ("./a.parquet", ["a.parquet"]),
        ("data/?.par*", ["data/a.parquet"]),
        ("[a-b].parquet", ["a.parquet"]),
        ("x" * 300, []),
    ],
)
def test_patterns_of_a_card_match_as_on_the_hub(pattern: str, fits: list[str]) -> None:
    assert matching(["a.parquet", "data/a.parquet", "data/deep/b.parquet"], [pattern]) == fits


def test_a_crafted_pattern_takes_no_time() -> None:
    assert matching(["a" * 200 + "/" + "b" * 50] * 50, ["*a" * 100 + "!", "**/" * 60 + "x"]) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no card",
        b"---\nnever closed",
        b"---\n- a list\n---\n",
        b"---\n{broken: [\n---\n",
        b"---\na: &a [x]\nb: *a\n---\n",
        b"---\n!!python/object/apply:os.system ['x']\n---\n",
        b"\xff\xfe---\n",
        b"---\n" + b"[" * 5000 + b"\n---\n",
        b"---\na: !!int ''\n---\n",
        b"---\na: !!bool x\n---\n",
        b"---\na: !!timestamp x\n---\n",
    ],
)
def test_a_card_that_cannot_be_read_says_nothing(content: bytes) -> None:
    assert read_card(content) == {}


def test_a_card_is_read_with_windows_line_ends_and_a_mark() -> None:
    assert read_card(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n# x") == {"license": "mit"}


def test_a_card_of_a_stranger_takes_no_more_than_seconds() -> None:
    """A card of a MiB of brackets took minutes, in the server."""
    started = time.process_time()
    assert read_card(b"---\na: " + b"[" * 60 + b"[]," * 340_000 + b"]" * 60 + b"\n---\n") == {}
    assert time.process_time() - started < 3


def test_a_card_of_a_thousand_configurations_is_read() -> None:
    each = "- config_name: c{0}\n  data_files:\n  - split: train\n    path: c{0}/train-*\n  - split: test\n    path: c{0}/test-*\n"
    card = "---\nconfigs:\n" + "".join(each.format(number) for number in range(1_000)) + "---\n"
    assert len(read_card(card.encode())["configs"]) == 1_000


def test_a_card_that_gives_a_key_twice_has_no_settings() -> None:
    assert read_card(b"---\nlicense: mit\nlicense: other\n---\n") == {}

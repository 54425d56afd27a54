"""Captions come from file names, text files or the configuration."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_engine.config.datasets import ImageSet
from trainer_engine.datasets.captions.base import NoCaption, captions_of
from trainer_engine.datasets.captions.textfile import LONGEST_CAPTION_FILE_BYTES, from_text_file
from trainer_engine.datasets.sources.base import open_source
from trainer_engine.datasets.sources.local import LocalSource


def captions(root: Path, name: str = "a_cat.jpg", **entry: Any) -> tuple[str, ...]:
    fields = {"position": 0, "id": "set", "instance_data_dir": str(root), **entry}
    images = ImageSet.model_validate(fields)
    return captions_of(images, open_source(images))(name)


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("a_cat.jpg", "a cat"),
        ("folder/a_dog,_running.PNG", "a dog, running"),
        ("two.dots.jpg", "two.dots"),
        ("Émile.png", "Émile"),
        ("_x_.png", "x"),
    ],
)
def test_a_name_becomes_a_caption(tmp_path: Path, name: str, caption: str) -> None:
    assert captions(tmp_path, name) == (caption,)


def test_undecodable_bytes_of_a_name_are_dropped(tmp_path: Path) -> None:
    [caption] = captions(tmp_path, os.fsdecode(b"caf\xe9_table.jpg"))
    assert caption == "caf table"


def test_a_name_without_text_is_no_caption(tmp_path: Path) -> None:
    with pytest.raises(NoCaption):
        captions(tmp_path, "___.jpg")


UNICODE_LINES = "one\u0085line\u2028of\u2029a\x0bcaption\x0c, all\x1c of it"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a cat", ("a cat",)),
        (b"\xef\xbb\xbfa cat\r\n\r\n  a tabby \r\n", ("a cat", "a tabby")),
        ("ein Käfer\n".encode(), ("ein Käfer",)),
        ("ein Käfer\n".encode("utf-16"), ("ein Käfer",)),
        ("a cat\n".encode("utf-16-le"), ("a cat",)),
        ("a cat\r\nein K\u00e4fer".encode("utf-16-be"), ("a cat", "ein K\u00e4fer")),
        (b"a cat\ra dog", ("a cat", "a dog")),
        (b"\xff\xfea\0 \0c\0a\0t\0\r\0\n\0a\0 \0d\0o\0g\0", ("a cat", "a dog")),
        ("\ufeffein K\u00e4fer\r\nune \u00e9t\u00e9".encode("utf-16-be"), ("ein K\u00e4fer", "une \u00e9t\u00e9")),
        ("ein K\u00e4fer\r\nune \u00e9t\u00e9".encode("latin-1"), ("ein K\u00e4fer", "une \u00e9t\u00e9")),
        ("a \u201ccat\u201d \u2013 it\u2019s 5 \u20ac".encode("cp1252"), ("a \u201ccat\u201d \u2013 it\u2019s 5 \u20ac",)),
        (UNICODE_LINES.encode(), (UNICODE_LINES,)),
    ],
)
def test_lines_of_a_text_file_are_alternatives(tmp_path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    (tmp_path / "a_cat.txt").write_bytes(content)
    assert captions(tmp_path, caption_strategy="textfile") == expected


def test_a_text_file_may_be_one_caption(tmp_path: Path) -> None:
    (tmp_path / "a_cat.txt").write_bytes(b"first\r\n\r\nsecond\r\n")
    assert captions(tmp_path, caption_strategy="textfile", disable_multiline_split=True) == ("first\n\nsecond",)


def test_text_files_lie_beside_their_images_in_folders(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.y.txt").write_text("here")
    assert captions(tmp_path, "deep/x.y.jpg", caption_strategy="textfile") == ("here",)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "no .txt"),
        (b"", "empty"),
        (b" \r\n\n", "empty"),
        (b"\xff\xfa\x00", "UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "neither UTF-8 nor Latin-1"),
        ("\u043a\u043e\u0442".encode("cp1251") + b" " + "\u0441\u043e\u0431\u0430\u043a\u0430".encode("cp1251"), "neither"),
        ("\u732b\u3068\u72ac".encode("shift-jis"), "neither"),
        (b"a \x81 cat", "neither"),
        (b"x" * 2_000_000, "larger"),
        (b"a\0b", "UTF-16 without a byte order mark"),
        ("\u043a\u043e\u0442 \u0438 \u043f\u0451\u0441".encode("utf-16-le"), "UTF-"),
        ("\u732b \u3068 \u72ac\n".encode("utf-16-le"), "UTF-"),
        ("a cat".encode("utf-32"), "zero bytes"),
    ],
)
def test_an_empty_text_file_is_reported(tmp_path: Path, content: bytes | None, word: str) -> None:
    if content is not None:
        (tmp_path / "a_cat.txt").write_bytes(content)
    with pytest.raises(NoCaption, match=word):
        captions(tmp_path, caption_strategy="textfile")


def test_the_instance_prompt_stands_for_all_or_before_each(tmp_path: Path) -> None:
    prompts = ("sks cat", "my cat")
    assert captions(tmp_path, caption_strategy="instanceprompt", instance_prompt=prompts) == prompts
    assert captions(tmp_path, only_instance_prompt=True, instance_prompt=prompts) == prompts
    assert captions(tmp_path, prepend_instance_prompt=True, instance_prompt=prompts) == ("sks cat a cat", "my cat a cat")


def test_a_pipe_in_place_of_a_caption_blocks_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a_cat.txt")
    with pytest.raises(NoCaption, match="cannot be read: it is not a file"):
        captions(tmp_path, caption_strategy="textfile")


TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\ufeff"), max_size=30)


@given(st.lists(TEXT, max_size=4), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), st.booleans())
def test_the_lines_of_any_text_come_back_in_every_encoding(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, encoding: str, split: bool
) -> None:
    folder, text = tmp_path_factory.getbasetemp(), end.join(lines)
    (folder / "any.txt").write_bytes(text.encode(encoding))
    strategy = {"caption_strategy": "textfile", "disable_multiline_split": not split}
    stripped = [line.strip() for line in re.split("\r\n|\r|\n", text)]
    wanted = tuple(line for line in stripped if line) if split else ("\n".join(stripped).strip(),)
    if any(wanted):
        assert captions(folder, "any.png", **strategy) == wanted
    else:
        with pytest.raises(NoCaption, match="empty"):
            captions(folder, "any.png", **strategy)


@given(st.binary(max_size=60))
def test_no_bytes_of_a_caption_file_break_its_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "bytes.txt").write_bytes(content)
    try:
        found = captions(folder, "bytes.png", caption_strategy="textfile")
    except NoCaption as refusal:
        assert str(refusal)
    else:
        assert found and all(line == line.strip() != "" and "\0" not in line for line in found)


@pytest.mark.parametrize("size", [LONGEST_CAPTION_FILE_BYTES, LONGEST_CAPTION_FILE_BYTES + 1])
def test_a_caption_file_is_limited_to_a_megabyte(tmp_path: Path, size: int) -> None:
    (tmp_path / "a_cat.txt").write_bytes(b"x" * size)
    if size > LONGEST_CAPTION_FILE_BYTES:
        with pytest.raises(NoCaption, match="larger than a megabyte"):
            captions(tmp_path, caption_strategy="textfile")
    else:
        assert [len(one) for one in captions(tmp_path, caption_strategy="textfile")] == [size]


@given(st.text(st.sampled_from("ab \t\r\n\x0b\x0c\x1c\u0085\u2028"), max_size=12))
def test_the_lines_of_a_caption_file_are_those_between_line_ends_without_blanks(text: str) -> None:
    expected = tuple(stripped for line in re.split(r"\r\n|\r|\n", text) if (stripped := line.strip()))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "image.txt").write_bytes(text.encode())
        for split, captions in ((True, expected), (False, ("\n".join(line.strip() for line in re.split(r"\r\n|\r|\n", text)).strip(),))):
            if any(captions):
                assert from_text_file(LocalSource(folder), "image.png", split=split) == captions
            else:
                with pytest.raises(NoCaption, match="is empty"):
                    from_text_file(LocalSource(folder), "image.png", split=split)


@pytest.mark.parametrize("name", ["a.b.png", "folder.with.dots/image.png", "deep/er/.hidden.png"])
def test_a_caption_file_has_the_name_of_its_image_up_to_the_last_dot(tmp_path: Path, name: str) -> None:
    caption = tmp_path / f"{name.removesuffix('.png')}.txt"
    caption.parent.mkdir(parents=True, exist_ok=True)
    caption.write_text("a caption")
    assert from_text_file(LocalSource(str(tmp_path)), name, split=True) == ("a caption",)

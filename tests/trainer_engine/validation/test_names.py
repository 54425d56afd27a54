from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_engine.config.prompt_library import LONGEST_SHORTNAME_BYTES, file_name
from trainer_engine.validation.names import apart, name_after


@pytest.mark.parametrize(
    ("file", "name"), [("a/x y.png", "x_y"), ("a.b/c.d.jpg", "c.d"), (os.fsdecode(b"\xff1.png"), "_xff1"), ("ä-1.webp", "ä-1")]
)
def test_names_from_files_lose_characters_that_a_file_name_cannot_hold(file: str, name: str) -> None:
    assert name_after(file) == name


def test_a_long_name_is_cut_between_two_letters() -> None:
    assert name_after(f"{'雪' * 80}.png") == "雪" * (LONGEST_SHORTNAME_BYTES // 3)


def test_names_that_make_one_file_get_numbers() -> None:
    assert apart(["a b", "c", "a_b", "A b", "a b-2"], []) == ["a b", "c", "a_b-2", "A b-3", "a b-2-2"]


def test_a_label_never_gives_two_images_one_file() -> None:
    assert apart(["cat", "cat_ema"], []) == ["cat", "cat_ema"]
    assert apart(["cat", "cat_ema", "dog_ema", "dog"], ["ema", "startup"]) == ["cat", "cat_ema-2", "dog_ema", "dog-2"]


NAMES = st.lists(st.text("aA b_-2éß", min_size=1, max_size=6), max_size=8)


@given(NAMES, st.lists(st.sampled_from(["ema", "startup", "2"]), max_size=2, unique=True))
def test_no_two_images_of_a_validation_share_a_file(shortnames: list[str], labels: list[str]) -> None:
    """Also where a disk ignores case, and whatever weights an image is of."""
    found = apart(shortnames, labels)
    files = [{file_name(name).casefold() for name in (one, *(f"{one}_{label}" for label in labels))} for one in found]
    assert len(set().union(*files)) == sum(map(len, files))
    assert all(name == given or name.startswith(f"{given}-") for name, given in zip(found, shortnames, strict=True))
    assert apart(found, labels) == found


@given(st.text(min_size=1, max_size=90))
def test_a_name_from_a_file_is_a_file_name(stem: str) -> None:
    name = name_after(f"folder/{stem.replace(chr(0), '').replace('/', '')}.png")
    assert len(os.fsencode(name)) <= LONGEST_SHORTNAME_BYTES and "/" not in name and "\0" not in name

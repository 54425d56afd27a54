from __future__ import annotations

import os

import pytest

from trainer_engine.config.prompt_library import LONGEST_SHORTNAME_BYTES
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

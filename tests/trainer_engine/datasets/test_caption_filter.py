"""Caption filters remove and replace text, and no pattern of a user freezes the process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.params import first_fast
from trainer_engine.datasets import caption_filter
from trainer_engine.datasets.caption_filter import CaptionFilter, FilterFails


def filtered(rules: list[str], *captions: str) -> list[str]:
    return CaptionFilter.of(tuple(rules)).apply(captions)


@pytest.mark.parametrize(
    ("rules", "caption", "expected"),
    [
        (["arafed "], "arafed cat on a mat", "cat on a mat"),
        (["a photo of "], "a photo of a photo of a cat", "a cat"),
        (["cat", "dog"], "cat, dog, bird", ", , bird"),
        (["s/dog/cat/"], "a dog and a Dog", "a cat and a Dog"),
        (["s/dog/cat/i"], "a dog and a Dog", "a cat and a cat"),
        (["s/(\\w+) cat/cat of \\1/"], "a red cat", "a cat of red"),
        (["s/and\\/or/or/"], "cats and/or dogs", "cats or dogs"),
        (["s/ or /\\//"], "cats or dogs", "cats/dogs"),
        (["s/cat//"], "a cat", "a"),
        (["^this .* has "], "this image has a cat", "a cat"),
        ([" (left)"], "a cat (left)", "a cat"),
        (["(left"], "a cat (left", "a cat"),
        (["s/he"], "s/he runs", "runs"),
        (["cat", "s/a ./x/"], "a cat b", "xb"),
        (["(?i)CAT"], "a Cat", "a"),
    ],
)
def test_a_filter_removes_and_replaces(rules: list[str], caption: str, expected: str) -> None:
    assert filtered(rules, caption) == [expected]


def test_rules_are_applied_one_after_the_other_to_every_caption() -> None:
    assert filtered(["s/a/b/", "s/b/c/"], "a", "b", "ab") == ["c", "c", "cc"]
    assert filtered(["cat"], "cat", "a cat", "dog") == ["", "a", "dog"]


@pytest.mark.parametrize(
    ("rules", "number", "words", "code"),
    [
        (["fine", "s/(/x/"], 2, "not a regular expression", "bad_pattern"),
        (["s/a/\\9/"], 1, "not a regular expression", "bad_pattern"),
        (["s/a/b"], 1, "not s/find/replace/", "bad_pattern"),
        (["s/a/b/c/"], 1, "not s/find/replace/", "bad_pattern"),
        (["x", "s/a{99999999999}/x/"], 2, "cannot be applied", "bad_pattern"),
    ],
)
def test_an_entry_that_cannot_be_applied_is_named_by_its_number(rules: list[str], number: int, words: str, code: str) -> None:
    with pytest.raises(FilterFails, match=words) as failure:
        filtered(rules, "aa")
    assert str(failure.value).startswith(f"entry {number} ") and failure.value.code == code


@pytest.mark.parametrize("pattern", first_fast(["s/(a+)+$/x/", "(a|a)*$x", "s/([a-z_.0-9]+)+!$/x/"]))
def test_a_pattern_without_an_end_is_stopped_and_named(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_filter, "LEAST_CPU_SECONDS", 1)
    started = time.monotonic()
    with pytest.raises(FilterFails, match="entry 2 takes too long: it was stopped after 1 s") as failure:
        filtered(["fine", pattern], "a" * 60 + "b")
    assert failure.value.code == "pattern_too_slow" and time.monotonic() - started < 40


def test_a_caption_cannot_grow_without_bounds() -> None:
    rules = [f"s/{'a'}/{'a' * 400}/"] * 4
    with pytest.raises(FilterFails, match="entry 2 cannot be applied: (it makes a caption longer|it needs too much memory)"):
        filtered(rules, "a" * 10)


def test_a_file_of_filters_is_read_in_either_form(tmp_path: Path) -> None:
    (tmp_path / "filters.txt").write_bytes("arafed \r\n\r\ns/K\u00e4fer/beetle/\r\n".encode("utf-16"))
    (tmp_path / "filters.json").write_text(json.dumps(["arafed ", "s/K\u00e4fer/beetle/"]))
    for name in ("filters.txt", "filters.json"):
        assert CaptionFilter.of(str(tmp_path / name)).apply(["arafed K\u00e4fer"]) == ["beetle"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", b'["secret words"', "not valid JSON: .* at line 1"),
        ("a.json", b'{"secret words": 1}', "is not a list"),
        ("a.json", b'["fine", 3]', "no text of 1 to 1000 characters: number 2"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "neither UTF-8 nor Latin-1"),
        ("a.txt", b"secret words\n" * 1_001, "1001 entries; at most 1000"),
        ("a.txt", b"secret words" * 100, "number 1"),
    ],
)
def test_a_file_that_is_no_list_of_filters_is_refused_without_its_content(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as failure:
        CaptionFilter.of(str(tmp_path / name))
    assert "secret" not in str(failure.value)


def test_a_missing_file_of_filters_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CaptionFilter.of(str(tmp_path / "gone.txt"))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab s/\\()*+"), min_size=1, max_size=8), min_size=1, max_size=3), st.text("ab ", max_size=8))
def test_any_entries_are_applied_or_refused(rules: list[str], caption: str) -> None:
    try:
        [found] = filtered(rules, caption)
    except FilterFails as failure:
        assert str(failure).startswith("entry ")
    else:
        assert found == found.strip()

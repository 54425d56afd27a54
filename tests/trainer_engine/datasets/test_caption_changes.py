"""Changed captions: shuffled variants, what a filter leaves, and that the cache holds the changed text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.caches import places_of
from tests.helpers.checked_runs import checked, refusal
from tests.helpers.tiny_run import tiny_datasets, tiny_options, train_here
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.datasets.object_fields import CaptionShuffle
from trainer_engine.config.families import find_spec
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import errors_in
from trainer_engine.contract.events import Notification
from trainer_engine.datasets.caption_changes import EMPTIED, variants
from trainer_engine.datasets.examine import examine
from trainer_engine.datasets.report import DatasetReport

TAGS = "one, two, three, four, five"


def changed(place: Path, captions: dict[str, str], *, filters: Any = None, shuffle: Any = None, **options: Any) -> DatasetReport:
    """The report of the tiny datasets, with captions in text files by the stem of their image."""
    images, texts = tiny_datasets(place, caption_strategy="textfile")
    for path in sorted(path for path in (place / "images").rglob("*.*") if path.suffix != ".txt"):
        path.with_suffix(".txt").write_text(captions.get(path.stem, captions.get("", "")))
    images |= {"caption_shuffle": shuffle} if shuffle else {}
    texts |= {"caption_filter_list": filters} if filters else {}
    chosen = parse_options(tiny_options(place, model="nobody/nothing", train_batch_size=1, **options))
    dataloader, problems = parse_dataloader([images, texts], chosen)
    assert errors_in(problems) == []
    spec = find_spec("pixart_sigma")
    assert spec is not None
    return examine(dataloader, chosen, spec)


def captions_in(report: DatasetReport) -> set[tuple[str, ...]]:
    return {sample.captions for sample in report.sets[0].samples}


def test_variants_hold_every_tag_once_and_keep_those_in_front() -> None:
    shuffle = CaptionShuffle(enable=True, count=8, position_start=2)
    found = variants(TAGS, shuffle, seed=3)
    assert found[0] == TAGS and len(found) == len(set(found)) > 3
    assert all(text.startswith("one, two, ") and sorted(text.split(", ")) == sorted(TAGS.split(", ")) for text in found)


def test_variants_depend_on_caption_and_seed_alone() -> None:
    shuffle = CaptionShuffle(enable=True, count=4, include_original=False)
    assert variants(TAGS, shuffle, seed=3) == variants(TAGS, shuffle, seed=3) != variants(TAGS, shuffle, seed=30)
    assert TAGS not in variants(TAGS, shuffle, seed=3)
    assert variants("a, b, c, d, e", shuffle, 3) != tuple(
        text.replace("one", "a").replace("two", "b").replace("three", "c").replace("four", "d").replace("five", "e")
        for text in variants(TAGS, shuffle, 3)
    )


def test_the_order_of_variants_never_changes() -> None:
    """Checkpoints and caches of earlier versions go on with the same texts."""
    shuffle = CaptionShuffle(enable=True, count=3)
    assert variants("a, b, c, d", shuffle, seed=1) == ("a, b, c, d", "d, c, b, a", "d, c, a, b", "a, d, b, c")


@pytest.mark.parametrize(
    ("split_on", "caption", "tags"),
    [
        ("space", "a  red cat", {"a", "red", "cat"}),
        ("period", "A cat. It sits. It purrs.", {"A cat", "It sits", "It purrs"}),
        ("comma", "a red cat,on a mat ,, alone", {"a red cat", "on a mat", "alone"}),
    ],
)
def test_tags_are_split_where_the_field_says(split_on: Any, caption: str, tags: set[str]) -> None:
    separator = {"space": " ", "period": ". ", "comma": ", "}[split_on]
    for text in variants(caption, CaptionShuffle(enable=True, count=5, split_on=split_on, include_original=False), seed=0):
        assert text.endswith(".") is (split_on == "period")
        assert set(text.removesuffix(".").split(separator)) == tags


@pytest.mark.parametrize(("caption", "start"), [("one tag", 0), ("one, two", 1), ("", 0), ("one, two, three", 9)])
def test_a_caption_with_too_few_tags_has_no_variants(caption: str, start: int) -> None:
    assert variants(caption, CaptionShuffle(enable=True, count=3, position_start=start, include_original=False), seed=0) == (caption,)


def test_a_filter_changes_the_captions_before_they_are_shuffled(tmp_path: Path) -> None:
    report = changed(
        tmp_path, {"": "arafed red, blue, green\narafed solo"}, filters=["arafed "], shuffle={"enable": True, "count": 1, "seed": 5}
    )
    [captions] = captions_in(report)
    assert captions[0] == "red, blue, green" and captions[-1] == "solo"
    assert not any("arafed" in text for text in captions) and len(captions) in (2, 3)


def test_a_shuffle_that_is_not_enabled_changes_nothing(tmp_path: Path) -> None:
    assert captions_in(changed(tmp_path, {"": TAGS}, shuffle={"count": 4})) == {(TAGS,)}


def test_a_sample_whose_captions_become_empty_is_left_out_and_named(tmp_path: Path) -> None:
    tiny_datasets(tmp_path)
    names = sorted(path.stem for path in (tmp_path / "images").rglob("*.*"))
    report = changed(tmp_path, {"": "a cat\njunk", names[0]: "junk"}, filters=["junk"])
    assert errors_in(report.problems) == []
    assert captions_in(report) == {("a cat",)}
    assert {one.reason for one in report.sets[0].left_out} == {EMPTIED}


def test_a_filter_that_empties_every_caption_is_an_error(tmp_path: Path) -> None:
    [lost, emptied] = errors_in(changed(tmp_path, {"": "a cat"}, filters=[".*"]).problems)
    assert (lost.code, emptied.code) == ("no_usable_images", "captions_emptied")
    assert emptied.option == "dataloader[1].caption_filter_list" and "of all captions of dataset pictures, which are 8" in emptied.message


def test_filters_of_a_set_that_cannot_be_applied_are_reported_once(tmp_path: Path) -> None:
    [problem] = errors_in(changed(tmp_path, {"": "a cat"}, filters=["fine", "s/(/x/"]).problems)
    assert (problem.option, problem.code) == ("dataloader[1].caption_filter_list", "bad_pattern")
    assert "caption_filter_list: entry 2 cannot be applied" in problem.message


def test_validate_reads_a_file_of_filters_and_names_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "filters.txt").write_text("bench\n")
    images, texts = tiny_datasets(tmp_path)
    assert checked(tmp_path, datasets=[images, {**texts, "caption_filter_list": "filters.txt"}]).errors == []
    problem = refusal(checked(tmp_path, datasets=[images, {**texts, "caption_filter_list": "gone.txt"}]))
    assert problem.option == "dataloader[1].caption_filter_list"
    stopped = refusal(checked(tmp_path, datasets=[images, {**texts, "caption_filter_list": "/etc/passwd.txt"}]))
    assert stopped.option == "dataloader[1].caption_filter_list"


@pytest.mark.parametrize(
    ("position", "fields", "option", "code"),
    [
        (1, {"caption_filter_list": "filters.yaml"}, "caption_filter_list", "not_a_list"),
        (1, {"caption_filter_list": ["a", ""]}, "caption_filter_list", "not_text"),
        (1, {"caption_filter_list": {"a": "b"}}, "caption_filter_list", "not_a_list"),
        (1, {"caption_filter_list": ["a"] * 1_001}, "caption_filter_list", "too_many"),
        (0, {"caption_filter_list": ["a"]}, "caption_filter_list", "not_for_type"),
        (0, {"caption_shuffle": [1]}, "caption_shuffle", "not_an_object"),
        (0, {"caption_shuffle": {"count": 0}}, "caption_shuffle.count", "out_of_range"),
        (0, {"caption_shuffle": {"count": "many"}}, "caption_shuffle.count", "not_a_whole_number"),
        (0, {"caption_shuffle": {"split_on": "tab"}}, "caption_shuffle.split_on", "not_a_choice"),
        (0, {"caption_shuffle": {"enabled": True}}, "caption_shuffle.enabled", "unknown_field"),
        (1, {"caption_shuffle": {"enable": True}}, "caption_shuffle", "not_for_type"),
    ],
)
def test_wrong_fields_of_caption_changes_are_reported(tmp_path: Path, position: int, fields: Any, option: str, code: str) -> None:
    entries = tiny_datasets(tmp_path)
    entries[position] |= fields
    _, problems = parse_dataloader(entries, parse_options(tiny_options(tmp_path, model="nobody/nothing")))
    assert [(problem.option, problem.code) for problem in errors_in(problems)] == [(f"dataloader[{position}].{option}", code)]


def test_changed_captions_survive_being_written_and_read(tmp_path: Path) -> None:
    entries = tiny_datasets(tmp_path)
    entries[0]["caption_shuffle"] = json.dumps({"enable": "true", "count": 2})
    entries[1]["caption_filter_list"] = ["a", "s/b/c/"]
    options = parse_options(tiny_options(tmp_path, model="nobody/nothing"))
    dataloader, problems = parse_dataloader(entries, options)
    assert problems == []
    assert dataloader.image_sets[0].caption_shuffle == CaptionShuffle(enable=True, count=2)
    assert parse_dataloader(json.loads(json.dumps(dataloader.as_document())), options) == (dataloader, [])


def test_the_cache_holds_the_changed_texts_and_a_run_resumes_with_them(tmp_path: Path) -> None:
    def datasets(place: Path, **fields: Any) -> list[dict[str, Any]]:
        images, texts = tiny_datasets(place, caption_strategy="instanceprompt", instance_prompt="arafed red, blue, green")
        images["caption_shuffle"] = {"enable": True, "count": 2, "include_original": False}
        return [images, {**texts, "caption_filter_list": ["arafed "], **fields}]

    straight = train_here(tmp_path / "straight", datasets=datasets(tmp_path / "straight"))
    train_here(tmp_path / "halves", stop_after=2, datasets=datasets(tmp_path / "halves"))
    resumed = train_here(tmp_path / "halves", datasets=datasets(tmp_path / "halves"), resume_from_checkpoint="latest")
    assert resumed.step == 4 and resumed.weights() == straight.weights()
    assert not [event for event in resumed.heard.of(Notification) if event.code == "data_changed"]
    cached = places_of(tmp_path / "halves/cache/text").keys()
    assert len(cached) == 3, "two variants and the empty prompt"
    train_here(tmp_path / "halves", datasets=datasets(tmp_path / "halves", caption_filter_list=["s/arafed //"]))
    assert cached == places_of(tmp_path / "halves/cache/text").keys(), "the same texts need no new embeddings"

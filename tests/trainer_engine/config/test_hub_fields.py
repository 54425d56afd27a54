"""The fields of datasets of rows: those that real configurations have parse, and every wrong one is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_run import tiny_options
from trainer_engine.config.datasets import Dataloader, ImageSet, parse_dataloader
from trainer_engine.config.datasets.names import known_names, later
from trainer_engine.config.parse import parse_options
from trainer_engine.contract.errors import Level, Problem, errors_in
from trainer_engine.datasets.sources.hub.filters import RowFilter
from trainer_engine.datasets.sources.hub.options import RowOptions, Tile, row_options

DOMOKUN: dict[str, Any] = {
    "id": "domokun",
    "type": "huggingface",
    "dataset_name": "RareConcepts/Domokun",
    "metadata_backend": "huggingface",
    "caption_strategy": "instanceprompt",
    "instance_prompt": "domokun",
    "resolution": 1024,
    "resolution_type": "pixel_area",
    "minimum_image_size": 512,
    "maximum_image_size": 1536,
    "target_downsample_size": 1024,
    "crop": True,
    "crop_aspect": "square",
    "crop_style": "center",
    "cache_dir_vae": "cache/vae/{model_family}/domokun",
    "probability": 1.0,
    "repeats": 3,
    "disabled": False,
}
CAPTIONED: dict[str, Any] = {
    "id": "captioned",
    "type": "huggingface",
    "dataset_name": "owner/captions",
    "metadata_backend": "huggingface",
    "caption_strategy": "huggingface",
    "split": "train",
    "revision": "v1.0",
    "image_column": "image",
    "huggingface": {"caption_column": ["caption.short", "caption.long"]},
    "resolution": 0.5,
    "resolution_type": "area",
    "cache_dir_vae": "cache/vae/{model_family}/captioned",
}
TEXTS = {"id": "text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text", "disabled": False}
"""A cache of prompts as the shipped examples have it."""


def parse(*entries: dict[str, Any]) -> tuple[Dataloader, list[Problem]]:
    options = parse_options(tiny_options(Path("/out"), model="nobody/nothing"))
    return parse_dataloader([*entries, {**TEXTS, "write_batch_size": 64}], options)


def read(**fields: Any) -> RowOptions:
    dataloader, problems = parse({**CAPTIONED, "huggingface": None, **fields})
    assert errors_in(problems) == []
    return row_options(dataloader.image_sets[0])


def refusals(**fields: Any) -> list[tuple[str, str]]:
    _, problems = parse({**CAPTIONED, **fields})
    return [(problem.option.removeprefix("dataloader[0]."), problem.code) for problem in errors_in(problems)]


@pytest.mark.parametrize("entry", [DOMOKUN, CAPTIONED])
def test_the_entries_of_shipped_examples_parse_and_survive_being_written(entry: dict[str, Any]) -> None:
    dataloader, problems = parse(entry)
    assert problems == []
    options = parse_options(tiny_options(Path("/out"), model="nobody/nothing"))
    assert parse_dataloader(dataloader.as_document(), options) == (dataloader, [])


def test_a_set_and_its_references_may_both_be_rows() -> None:
    pair = {"id": "edits", "type": "huggingface", "dataset_name": "owner/edits", "image_column": "source", "cache_dir_vae": "cache/edits"}
    references = {**pair, "dataset_type": "conditioning", "conditioning_type": "reference_strict", "metadata_backend": "huggingface"}
    dataloader, problems = parse({**DOMOKUN, "conditioning_data": "edits"}, references)
    assert errors_in(problems) == []
    [one] = dataloader.reference_sets
    assert row_options(one).column == "source" and one.place == "owner/edits"


def test_fields_of_rows_are_no_longer_missing_from_the_format() -> None:
    names = {"dataset_name", "split", "revision", "image_column", "video_column", "caption_column", "huggingface"}
    assert names <= known_names() and not names & later().keys()


def test_a_setting_may_stand_outside_or_inside_the_object() -> None:
    outside = read(split="test", image_column="jpg", caption_column="text", revision="abc")
    settings = {"split": "test", "image_column": "jpg", "caption_column": "text", "revision": "abc"}
    inside = read(split=None, image_column=None, revision=None, huggingface=settings)
    assert outside == inside
    assert (outside.split, outside.column, outside.caption_columns, outside.revision) == ("test", "jpg", ("text",), "abc")


def test_the_object_holds_filters_tiles_and_a_configuration() -> None:
    conditions = {
        "quality_thresholds": {"clear": 0.5, "sharp": "2"},
        "quality_column": "scores",
        "collection": ["photo", "art"],
        "min_width": 512,
        "min_height": "256",
    }
    tile = {"enabled": True, "image_count": 2, "select_index": 1}
    found = read(huggingface={"filter_func": conditions, "composite_image_config": tile, "config_name": "large"})
    assert found.filter == RowFilter((("clear", 0.5), ("sharp", 2.0)), "scores", ("photo", "art"), 512, 256)
    assert (found.tile, found.config_name) == (Tile(2, 1), "large")
    assert read(huggingface={"composite_image_config": {"enabled": "false", "image_count": 2}}).tile is None


def test_a_column_of_clips_replaces_the_column_of_images() -> None:
    found = read(video_column="clip")
    assert (found.column, found.has_clips) == ("clip", True)
    assert not read().has_clips


def test_sizes_are_taken_from_rows_if_the_metadata_are() -> None:
    assert read().trusts_sizes and not read(metadata_backend="discovery").trusts_sizes and not read(metadata_backend="json").trusts_sizes


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"dataset_name": None}, "dataset_name", "missing"),
        ({"dataset_name": "owner/name/too/deep"}, "dataset_name", "not_a_dataset"),
        ({"dataset_name": "owner/na me"}, "dataset_name", "not_a_dataset"),
        ({"dataset_name": "../../etc"}, "dataset_name", "not_a_dataset"),
        ({"dataset_name": "https://huggingface.co/datasets/a/b"}, "dataset_name", "not_a_dataset"),
        ({"split": "../x"}, "split", "not_a_name"),
        ({"revision": "a\nb"}, "revision", "not_a_name"),
        ({"revision": "/etc/passwd"}, "revision", "not_a_name"),
        ({"caption_column": ["a", 5], "huggingface": None}, "caption_column", "not_text"),
        ({"caption_column": "other"}, "caption_column", "conflicting_values"),
        ({"split": "a", "huggingface": {"split": "b"}}, "split", "conflicting_values"),
        ({"huggingface": {"dataset_name": "owner/others"}}, "dataset_name", "conflicting_values"),
        ({"dataset_name": None, "huggingface": {"dataset_name": "owner/captions"}}, "dataset_name", "missing"),
        (
            {"fallback_caption_column": "a", "huggingface": {"fallback_caption_column": "b"}},
            "fallback_caption_column",
            "conflicting_values",
        ),
        ({"huggingface": {"description_column": ["a"]}}, "huggingface", "not_text"),
        ({"huggingface": {"width_column": "/w"}}, "huggingface", "not_a_name"),
        ({"huggingface": "settings.json"}, "huggingface", "not_an_object"),
        ({"huggingface": ["a"]}, "huggingface", "not_an_object"),
        ({"huggingface": {"caption_colum": "a"}}, "huggingface", "unknown_field"),
        ({"huggingface": {"filter_func": {"min_widht": 5}}}, "huggingface", "unknown_field"),
        ({"huggingface": {"filter_func": {"min_width": -5}}}, "huggingface", "out_of_range"),
        ({"huggingface": {"filter_func": {"min_width": 1.5}}}, "huggingface", "not_a_whole_number"),
        ({"huggingface": {"filter_func": {"quality_thresholds": ["a"]}}}, "huggingface", "not_an_object"),
        ({"huggingface": {"filter_func": {"quality_thresholds": {"a": "high"}}}}, "huggingface", "not_a_number"),
        ({"huggingface": {"filter_func": "lambda row: True"}}, "huggingface", "not_an_object"),
        ({"huggingface": {"composite_image_config": {"image_count": 2, "select_index": 2}}}, "huggingface", "out_of_range"),
        ({"huggingface": {"composite_image_config": {"select_index": 0}}}, "huggingface", "missing"),
        ({"huggingface": {"composite_image_config": {"columns": 2}}}, "huggingface", "unknown_field"),
        ({"video_column": "clip", "huggingface": {"composite_image_config": {"image_count": 2}}}, "huggingface", "conflicting_values"),
        ({"caption_strategy": "textfile"}, "caption_strategy", "not_for_source"),
        ({"caption_strategy": None}, "caption_strategy", "not_available"),
        ({"type": "local", "instance_data_dir": "/data"}, "dataset_name", "not_for_type"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], field: str, code: str) -> None:
    assert (field, code) in refusals(**fields)


def test_captions_and_sizes_of_rows_are_refused_for_files_of_a_folder() -> None:
    entry = {"id": "a", "type": "local", "instance_data_dir": "/data", "caption_strategy": "huggingface", "metadata_backend": "huggingface"}
    _, problems = parse(entry)
    found = {problem.option.removeprefix("dataloader[0]."): problem for problem in errors_in(problems)}
    assert found["caption_strategy"].code == found["metadata_backend"].code == "not_for_source"
    assert "filename" in found["caption_strategy"].expected and "huggingface" not in found["caption_strategy"].expected


def test_a_refused_caption_strategy_says_what_to_do() -> None:
    _, problems = parse({**DOMOKUN, "caption_strategy": "textfile"})
    [problem] = errors_in(problems)
    assert problem.expected == "one of instanceprompt, huggingface" and problem.hint.startswith("set caption_strategy to")
    _, problems = parse({**DOMOKUN, "caption_strategy": "textfile", "only_instance_prompt": True})
    assert errors_in(problems) == [], "no caption is read"


def test_what_other_sources_need_and_hints_are_notes() -> None:
    extra = {"instance_data_dir": "/data/unused", "cache_dir": "cache/hf", "caption_column": "text"}
    dataloader, problems = parse({**DOMOKUN, **extra, "huggingface": {"streaming": True, "num_proc": 16}})
    assert {(problem.option.removeprefix("dataloader[0]."), problem.code, problem.level) for problem in problems} == {
        (name, "no_effect", Level.NOTE) for name in (*extra, "huggingface.streaming", "huggingface.num_proc")
    }
    [images] = dataloader.image_sets
    assert images.instance_data_dir == "" and images.place == "RareConcepts/Domokun"


def test_the_help_describes_the_object_and_not_a_file() -> None:
    _, problems = parse({**DOMOKUN, "huggingface": "x"})
    assert errors_in(problems)[0].expected == "an object"


def test_row_options_of_a_wrong_entry_raise_its_first_refusal() -> None:
    dataloader, _ = parse(DOMOKUN)
    [images] = dataloader.image_sets
    wrong = images.model_copy(update={"own_fields": {**images.own_fields, "split": "/x"}})
    assert isinstance(wrong, ImageSet)
    with pytest.raises(ValueError, match="split is not a name"):
        row_options(wrong)


def test_the_name_of_the_dataset_may_be_repeated_in_the_object() -> None:
    repeated = read(huggingface={"dataset_name": CAPTIONED["dataset_name"], "caption_column": "text"})
    assert repeated == read(huggingface={"caption_column": "text"})
    here = {**CAPTIONED, "dataset_name": "/data/rows", "huggingface": {"dataset_name": "rows"}}
    assert errors_in(parse(here)[1]) == []


def test_columns_of_other_captions_are_tried_in_their_order() -> None:
    assert read().fallback_columns == ()
    assert read(fallback_caption_column="tags").fallback_columns == ("tags",)
    inside = {"fallback_caption_column": "tags", "description_column": "description"}
    assert read(huggingface=inside).fallback_columns == ("tags", "description")
    _, problems = parse({**DOMOKUN, "fallback_caption_column": "tags"})
    assert [(problem.option, problem.code) for problem in problems] == [("dataloader[0].fallback_caption_column", "no_effect")]


def test_columns_of_sizes_have_names_of_their_own() -> None:
    assert read().size_columns == ("width", "height")
    assert read(huggingface={"width_column": "original_width", "height_column": "h"}).size_columns == ("original_width", "h")


@pytest.mark.parametrize("fields", [{"streaming": True, "num_proc": 16}, {"streaming": "true"}])
def test_hints_of_rows_may_stand_outside_of_the_object(fields: dict[str, Any]) -> None:
    _, problems = parse({**DOMOKUN, **fields})
    assert [(problem.option, problem.code, problem.level) for problem in problems] == [
        (f"dataloader[0].{name}", "no_effect", Level.NOTE) for name in fields
    ]
    assert parse({**DOMOKUN, "streaming": False})[1] == []


@pytest.mark.parametrize("name", ["file_extension", "num_frames_column", "fps_column"])
def test_what_files_say_themselves_is_a_hint_of_rows(name: str) -> None:
    _, problems = parse({**DOMOKUN, "huggingface": {name: "something"}})
    assert [(problem.option, problem.code) for problem in problems] == [(f"dataloader[0].huggingface.{name}", "no_effect")]


def test_rows_have_captions_of_columns_unless_the_entry_says_otherwise() -> None:
    silent = {name: value for name, value in DOMOKUN.items() if name != "caption_strategy"}
    dataloader, problems = parse(silent)
    assert errors_in(problems) == [] and dataloader.image_sets[0].caption_strategy == "huggingface"
    local = {"id": "files", "type": "local", "instance_data_dir": "/data", "cache_dir_vae": "cache/files"}
    assert parse(silent, local)[0].image_sets[1].caption_strategy == "filename"

"""``conditioning`` of an image set: what is generated, with which fields, and what is refused before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.parse import parse_options
from trainer_engine.config.run_paths import read_places, written_folders
from trainer_engine.contract.errors import Level, Problem

OPTIONS: dict[str, Any] = {
    "model_family": "flux",
    "model_flavour": "kontext",
    "model_type": "lora",
    "output_dir": "/out",
    "data_backend_config": "d",
    "max_train_steps": 1,
}


def parsed(
    conditioning: Any, *more: dict[str, Any], options: dict[str, Any] | None = None, **fields: Any
) -> tuple[Dataloader, list[Problem]]:
    entry = {"id": "cats", "instance_data_dir": "/data/cats", "conditioning": conditioning, **fields}
    return parse_dataloader([entry, *more], {**OPTIONS, **(options or {})})


def errors(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(problem.option, problem.code) for problem in problems if problem.level is Level.ERROR}


def test_an_entry_becomes_a_conditioning_set_of_its_images() -> None:
    found, problems = parsed({"type": "superresolution", "blur_radius": 3, "jpeg_quality": "80"}, crop=True, crop_style="corner")
    assert not errors(problems)
    [images], [made] = found.image_sets, found.reference_sets
    assert found.references_of(images) == (made,)
    assert made.id == "cats_conditioning_superresolution" and made.source_dataset_id == "cats"
    assert made.conditioning_type == "reference_strict" and made.crop and made.crop_style == "corner"
    assert made.instance_data_dir == "/out/cache/conditioning_data/cats_conditioning_superresolution"
    assert made.vae_cache == "/out/cache/vae/flux/cats_conditioning_superresolution"
    assert made.generated is not None
    assert (made.generated.settings["blur_radius"], made.generated.settings["jpeg_quality"]) == (3.0, 80)
    assert made.option("cache_dir_vae") == "dataloader[0].conditioning[0].cache_dir_vae"


def test_several_entries_join_the_named_sets_and_masks_are_no_references() -> None:
    named = {"id": "refs", "conditioning_type": "reference_strict", "instance_data_dir": "/data/refs"}
    listed = [{"type": "canny"}, {"type": "random_masks", "conditioning_type": "mask"}]
    found, problems = parsed(listed, named, conditioning_data=["refs", "cats_conditioning_canny"])
    assert not errors(problems)
    [images] = found.image_sets
    assert [one.id for one in found.references_of(images)] == ["refs", "cats_conditioning_canny"]
    masks = found.mask_of(images)
    assert masks is not None and masks.id == "cats_conditioning_random_masks"


@pytest.mark.parametrize(
    ("written", "generator"),
    [
        *[(word, "superresolution") for word in ("superresolution", "super_resolution", "lowres", "SuperResolution")],
        *[(word, "jpeg_artifacts") for word in ("jpeg_artifacts", "jpeg", "compression")],
        *[(word, "random_masks") for word in ("random_masks", "masks")],
        *[("canny", "canny"), ("edges", "canny"), ("inpainting", "inpainting")],
    ],
)
def test_every_word_of_the_format_chooses_its_generator_and_names_its_set(written: str, generator: str) -> None:
    found, problems = parsed({"type": written})
    assert not errors(problems)
    [made] = found.reference_sets
    assert made.generated is not None and made.generated.generator == generator
    assert made.id == f"cats_conditioning_{written.lower()}"


def test_the_document_of_the_datasets_parses_to_the_same_sets() -> None:
    listed = [
        {"type": "jpeg", "quality_mode": "range", "quality_range": [10, 30], "captions": ["repair it", "clean up"]},
        {"type": "edges", "params": {"low_threshold": 20}, "instance_data_dir": "/elsewhere/{id}", "conditioning_type": "reference_loose"},
    ]
    found, problems = parsed(listed)
    assert not errors(problems)
    again, more = parse_dataloader(found.as_document(), OPTIONS)
    assert not errors(more)
    assert again == found
    assert found.reference_sets[1].instance_data_dir == "/elsewhere/cats"
    assert found.reference_sets[0].generated is not None
    assert found.reference_sets[0].generated.captions == ("repair it", "clean up")


@pytest.mark.parametrize(
    ("entry", "field", "code"),
    [
        ({}, "type", "missing"),
        ({"type": "cany"}, "type", "not_a_choice"),
        ({"type": "segmentation"}, "type", "not_available"),
        ({"type": "optical_flow"}, "type", "not_available"),
        ({"type": "canny", "low_threshold": -1}, "low_threshold", "out_of_range"),
        ({"type": "canny", "low_threshold": 90, "high_threshold": 80}, "low_threshold", "out_of_range"),
        ({"type": "canny", "blur_radius": 2}, "blur_radius", "unknown_field"),
        ({"type": "superresolution", "noise_level": 2}, "noise_level", "out_of_range"),
        ({"type": "superresolution", "blur_type": "motion"}, "blur_type", "not_a_choice"),
        ({"type": "superresolution", "downscale_factor": 0.5}, "downscale_factor", "out_of_range"),
        ({"type": "superresolution", "jpeg_quality": 101}, "jpeg_quality", "out_of_range"),
        ({"type": "jpeg", "quality": 0}, "quality", "out_of_range"),
        ({"type": "jpeg", "quality_range": [50, 10]}, "quality_range", "out_of_range"),
        ({"type": "jpeg", "quality_range": [10]}, "quality_range", "out_of_range"),
        ({"type": "jpeg", "quality_list": ["low"]}, "quality_list", "out_of_range"),
        ({"type": "jpeg", "compression_rounds": 1000}, "compression_rounds", "out_of_range"),
        ({"type": "masks", "mask_types": ["star"]}, "mask_types", "out_of_range"),
        ({"type": "masks", "min_coverage": 0.6}, "min_coverage", "out_of_range"),
        ({"type": "masks", "min_masks": 9}, "min_masks", "out_of_range"),
        ({"type": "masks", "mask_value": 300}, "mask_value", "out_of_range"),
        ({"type": "canny", "captions": [""]}, "captions", "missing"),
        ({"type": "canny", "captions": [["x"]]}, "captions", "not_text"),
    ],
)
def test_a_broken_entry_is_refused_at_its_field(entry: dict[str, Any], field: str, code: str) -> None:
    _, problems = parsed([entry])
    assert errors(problems) == {(f"dataloader[0].conditioning[0].{field}", code)}


def test_all_problems_are_reported_at_once() -> None:
    listed = [{"type": "canny", "low_threshold": "x"}, {"type": "jpeg", "quality": 0, "captions": [""]}, {"type": "cany"}]
    _, problems = parsed(listed, resolution=-1)
    fields = {option for option, _ in errors(problems)}
    assert "dataloader[0].resolution" in fields
    for name in ("[0].low_threshold", "[1].quality", "[1].captions", "[2].type"):
        assert f"dataloader[0].conditioning{name}" in fields


@pytest.mark.parametrize("value", ["canny", 3, ["canny"], [{"type": "canny"}] * 21])
def test_conditioning_that_is_no_list_of_objects_is_refused(value: Any) -> None:
    assert errors(parsed(value)[1]) == {("dataloader[0].conditioning", "not_a_list")}


def test_ids_of_generated_sets_are_their_own() -> None:
    assert errors(parsed([{"type": "canny"}, {"type": "canny", "low_threshold": 3}])[1]) == {("dataloader[0].conditioning", "duplicate_id")}
    taken = {"id": "cats_conditioning_canny", "instance_data_dir": "/data/other"}
    assert ("dataloader[0].conditioning", "duplicate_id") in errors(parsed({"type": "canny"}, taken)[1])


def test_captions_of_one_of_several_references_need_random_sampling() -> None:
    listed = [{"type": "canny", "captions": "from edges"}, {"type": "jpeg"}]
    combined = {"conditioning_multidataset_sampling": "combined"}
    assert errors(parsed(listed, options=combined)[1]) == {("dataloader[0].conditioning[0].captions", "combined_captions")}
    assert not errors(parsed(listed)[1]) and not errors(parsed(listed[:1], options=combined)[1])


def test_masks_are_of_one_set_also_if_they_are_generated() -> None:
    listed = [{"type": "random_masks", "conditioning_type": "mask"}, {"type": "canny", "conditioning_type": "segmentation"}]
    assert errors(parsed(listed)[1]) == {("dataloader[0].conditioning_data", "several_masks")}


def test_nothing_is_generated_where_nothing_is_asked_for() -> None:
    for empty in (None, [], {}, False, ""):
        found, problems = parsed(empty)
        assert not found.reference_sets and not errors(problems)


def test_the_folder_of_generated_files_is_a_place_that_a_run_writes_to() -> None:
    options = parse_options(OPTIONS)
    found, _ = parsed({"type": "canny", "instance_data_dir": "/made"})
    name = "dataloader[0].conditioning[0].instance_data_dir"
    assert written_folders(options, found)[name] == Path("/made")
    places = read_places(options, found)
    assert places["dataloader[0].instance_data_dir"] == Path("/data/cats")

    def locate(text: str, option: str, field: str) -> str | Problem:
        return Problem.error(option, "outside_roots", f"{field} {text}") if "made" in text else text

    entry = {"id": "cats", "instance_data_dir": "/data/cats", "conditioning": {"type": "canny", "instance_data_dir": "/made"}}
    _, problems = parse_dataloader([entry], OPTIONS, locate=locate)
    assert errors(problems) == {(name, "outside_roots")}
    assert "cache_dir /made" in next(problem.message for problem in problems if problem.option == name)

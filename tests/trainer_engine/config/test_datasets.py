"""The dataloader file: the tutorial's is understood, and everything wrong with another one is reported at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.datasets.docs import page
from trainer_engine.config.datasets.hints import GONE, HINTS
from trainer_engine.config.datasets.names import SETS, allowed, known_names, later
from trainer_engine.contract.errors import Level, Problem, errors_in

OPTIONS: dict[str, Any] = {"output_dir": "/out", "model_family": "pixart_sigma"}
IMAGES: dict[str, Any] = {
    "id": "pixart-camera",
    "type": "local",
    "dataset_type": "image",
    "instance_data_dir": "/data/datasets/pseudo-camera-10k",
    "caption_strategy": "filename",
    "resolution": 1.0,
    "resolution_type": "area",
    "minimum_image_size": 0.25,
    "maximum_image_size": 1.0,
    "target_downsample_size": 1.0,
    "cache_dir_vae": "/data/cache/vae/pixart/pseudo-camera-10k",
    "crop": True,
    "crop_style": "random",
    "crop_aspect": "square",
    "metadata_backend": "discovery",
}
TEXTS: dict[str, Any] = {
    "id": "pixart-text-embeds",
    "type": "local",
    "dataset_type": "text_embeds",
    "default": True,
    "cache_dir": "/data/cache/text/pixart/pseudo-camera-10k",
    "write_batch_size": 128,
}
MISSING = object()


def changed(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**base, **changes}.items() if value is not MISSING}


def images(**changes: Any) -> dict[str, Any]:
    return changed(IMAGES, **changes)


def texts(**changes: Any) -> dict[str, Any]:
    return changed(TEXTS, **changes)


def parse(*entries: Any, **options: Any) -> tuple[Dataloader, list[Problem]]:
    return parse_dataloader(list(entries), {**OPTIONS, **options})


def codes(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.option, problem.code) for problem in errors_in(problems)]


def test_the_files_of_the_tutorial_parse_without_a_note() -> None:
    dataloader, problems = parse(IMAGES, TEXTS)
    assert problems == []
    [entry] = dataloader.image_sets
    assert (entry.crop, entry.crop_style, entry.resolution, entry.minimum_image_size) == (True, "random", 1.0, 0.25)
    assert dataloader.default_text_set.text_cache == TEXTS["cache_dir"]


def test_the_fast_path_of_the_tutorial_takes_the_rest_from_the_options() -> None:
    entry = {
        "id": "demo-images",
        "type": "local",
        "dataset_type": "image",
        "instance_data_dir": "/d",
        "caption_strategy": "textfile",
        "resolution": 1024,
    }
    dataloader, problems = parse({**entry, "resolution_type": "pixel_area"}, texts(), vae_batch_size=8, cache_dir_vae=None)
    assert problems == []
    assert dataloader.image_sets[0].vae_cache == "/out/cache/vae/pixart_sigma/demo-images"
    assert dataloader.image_sets[0].vae_batch_size == 8


@pytest.mark.parametrize(
    ("entry", "field", "code"),
    [
        (images(id=MISSING), "id", "missing"),
        (images(id="  "), "id", "missing"),
        (images(id="../up"), "id", "not_a_name"),
        (images(id="x" * 300), "id", "not_a_name"),
        (images(id=["a"]), "id", "not_text"),
        (images(type="ftp"), "type", "not_a_choice"),
        (images(type="webshart"), "type", "not_available"),
        (images(type="memory"), "type", "not_available"),
        (images(dataset_type="video"), "dataset_type", "not_for_family"),
        (images(video={"num_frames": 5}), "video", "not_for_type"),
        (images(dataset_type="audio"), "dataset_type", "not_available"),
        (images(dataset_type="imagee"), "dataset_type", "not_a_choice"),
        (images(instance_data_dir=MISSING), "instance_data_dir", "missing"),
        (images(instance_data_dir=" "), "instance_data_dir", "missing"),
        (images(instance_data_dir=["/a"]), "instance_data_dir", "not_text"),
        (images(instance_data_root="/other"), "instance_data_dir", "conflicting_values"),
        (images(crop="maybe"), "crop", "not_a_boolean"),
        (images(crop=2), "crop", "not_a_boolean"),
        (images(crop_style="middle"), "crop_style", "not_a_choice"),
        (images(crop_style="face"), "crop_style", "not_available"),
        (images(crop_aspect="round"), "crop_aspect", "not_a_choice"),
        (images(crop_aspect="random"), "crop_aspect_buckets", "missing"),
        (images(crop_aspect="closest", crop_aspect_buckets=[]), "crop_aspect_buckets", "missing"),
        (images(crop_aspect="closest", crop_aspect_buckets="1.0"), "crop_aspect_buckets", "not_a_list"),
        (images(crop_aspect="closest", crop_aspect_buckets=["wide"]), "crop_aspect_buckets", "not_a_number"),
        (images(crop_aspect="random", crop_aspect_buckets=[-1]), "crop_aspect_buckets", "out_of_range"),
        (images(crop_aspect="random", crop_aspect_buckets=[{"aspect": 1, "weight": 0.4}]), "crop_aspect_buckets", "wrong_sum"),
        (images(crop_aspect="random", crop_aspect_buckets=[{"ratio": 1}]), "crop_aspect_buckets", "not_an_aspect"),
        (images(resolution_type="megapixels"), "resolution_type", "not_a_choice"),
        (images(resolution=0), "resolution", "out_of_range"),
        (images(resolution="large"), "resolution", "not_a_number"),
        (images(resolution=1024), "resolution", "looks_like_pixels"),
        (images(minimum_image_size=512), "minimum_image_size", "looks_like_pixels"),
        (images(minimum_image_size=6), "minimum_image_size", "looks_like_pixels"),
        (images(maximum_image_size=1024), "maximum_image_size", "looks_like_pixels"),
        (images(target_downsample_size=1024), "target_downsample_size", "looks_like_pixels"),
        (images(target_downsample_size=MISSING), "target_downsample_size", "incomplete"),
        (images(maximum_image_size=MISSING), "maximum_image_size", "incomplete"),
        (images(minimum_aspect_ratio=2, maximum_aspect_ratio=1), "minimum_aspect_ratio", "empty_range"),
        (images(caption_strategy="poetry"), "caption_strategy", "not_a_choice"),
        (images(caption_strategy="parquet"), "parquet", "missing"),
        (images(caption_strategy=None), "caption_strategy", "not_available"),
        (images(caption_strategy="instanceprompt"), "instance_prompt", "missing"),
        (images(prepend_instance_prompt=True), "instance_prompt", "missing"),
        (images(only_instance_prompt="yes"), "instance_prompt", "missing"),
        (images(instance_prompt=["a cat", " "]), "instance_prompt", "missing"),
        (images(instance_prompt={"a": 1}), "instance_prompt", "not_text"),
        (images(metadata_backend="parquet"), "parquet", "missing"),
        (images(metadata_backend="webshart"), "metadata_backend", "not_available"),
        (images(repeats=-1), "repeats", "out_of_range"),
        (images(repeats=1.5), "repeats", "not_a_whole_number"),
        (images(probability="often"), "probability", "not_a_number"),
        (images(probability=-0.5), "probability", "out_of_range"),
        (images(probability=1e7), "probability", "out_of_range"),
        (images(probability=0), "probability", "nothing_to_train"),
        (images(max_num_samples=0), "max_num_samples", "out_of_range"),
        (images(write_batch_size=0), "write_batch_size", "out_of_range"),
        (images(vae_batch_size=True), "vae_batch_size", "not_a_whole_number"),
        (images(text_embeds="nowhere"), "text_embeds", "unknown_reference"),
        (images(cache_dir_vae=TEXTS["cache_dir"] + "/"), "cache_dir_vae", "shared_cache"),
        (images(cache_dir_vae="{env:HOME}/x"), "cache_dir_vae", "secret_placeholder"),
        (images(cache_dir_vae="/x/{model_famly}"), "cache_dir_vae", "unknown_placeholder"),
        (images(crop_stile="random"), "crop_stile", "unknown_field"),
        (images(parquet={"path": "x"}), "parquet.filename_column", "missing"),
        (images(delete_nsfw_images=True), "delete_nsfw_images", "not_available"),
        (images(cache_dir="/x"), "cache_dir", "not_for_type"),
        (images(disabled="perhaps"), "disabled", "not_a_boolean"),
    ],
)
def test_a_broken_dataset_is_refused_at_its_field(entry: dict[str, Any], field: str, code: str) -> None:
    dataloader, problems = parse(entry, texts())
    assert (f"dataloader[0].{field}", code) in codes(problems)
    assert len(codes(problems)) == 1, problems
    assert dataloader.image_sets == ()
    [problem] = errors_in(problems)
    assert problem.message.endswith(".") and (
        not isinstance(entry.get("id"), str) or len(entry["id"]) < 4 or entry["id"] in problem.message
    )


def test_a_set_may_use_the_former_name_of_a_field() -> None:
    dataloader, problems = parse(images(disable_vae_cache="true"), texts())
    assert codes(problems) == []
    assert dataloader.image_sets[0].vae_cache_disable is True


@pytest.mark.parametrize(
    ("document", "option", "code"),
    [
        (None, "dataloader", "not_a_list"),
        ({"id": "a"}, "dataloader", "not_a_list"),
        ("[]", "dataloader", "not_a_list"),
        ([], "dataloader", "empty_list"),
        ([IMAGES, "text"], "dataloader[1]", "not_an_object"),
        ([IMAGES, None], "dataloader[1]", "not_an_object"),
        ([TEXTS], "dataloader", "no_images"),
        ([images(disabled=True), TEXTS], "dataloader", "no_images"),
        ([IMAGES, images(cache_dir_vae="/other"), TEXTS], "dataloader[1].id", "duplicate_id"),
        ([IMAGES, texts(id=IMAGES["id"])], "dataloader[1].id", "duplicate_id"),
        ([IMAGES, images(disable=True), TEXTS], "dataloader[1].id", "duplicate_id"),
        ([IMAGES, TEXTS, texts(id="second")], "dataloader[2].default", "second_default"),
        ([IMAGES, images(id="b"), TEXTS], "dataloader[1].cache_dir_vae", "shared_cache"),
        ([IMAGES, texts(resolution=512)], "dataloader[1].resolution", "not_for_type"),
        ([IMAGES, texts(default="x")], "dataloader[1].default", "not_a_boolean"),
        ([IMAGES, texts(caption_filter_list=["a", 3])], "dataloader[1].caption_filter_list", "not_text"),
        ([IMAGES, texts(compress_cache="perhaps")], "dataloader[1].compress_cache", "not_a_boolean"),
        ([IMAGES, texts(write_batch_size="many")], "dataloader[1].write_batch_size", "not_a_whole_number"),
        (
            [
                images(
                    resolution_type="pixel_area",
                    resolution=1.5,
                    minimum_image_size=MISSING,
                    maximum_image_size=MISSING,
                    target_downsample_size=MISSING,
                )
            ],
            "dataloader[0].resolution",
            "looks_like_megapixels",
        ),
        (
            [
                images(
                    resolution_type="pixel_area",
                    resolution=512.5,
                    minimum_image_size=MISSING,
                    maximum_image_size=MISSING,
                    target_downsample_size=MISSING,
                )
            ],
            "dataloader[0].resolution",
            "not_a_whole_number",
        ),
    ],
)
def test_a_broken_file_is_refused_completely(document: Any, option: str, code: str) -> None:
    _, problems = parse_dataloader(document, OPTIONS)
    assert codes(problems) == [(option, code)]


def test_the_parser_reports_every_problem_of_a_file_at_once() -> None:
    broken = images(crop="maybe", crop_style="middle", resolution="large", repeats=-1, crop_stile=1)
    _, problems = parse(broken, images(id="other", instance_data_dir=""), 7, texts(default=3))
    assert {option for option, _ in codes(problems)} == {
        "dataloader[0].crop",
        "dataloader[0].crop_style",
        "dataloader[0].resolution",
        "dataloader[0].repeats",
        "dataloader[0].crop_stile",
        "dataloader[1].instance_data_dir",
        "dataloader[1].cache_dir_vae",
        "dataloader[2]",
        "dataloader[3].default",
    }


def test_good_datasets_are_returned_beside_broken_ones() -> None:
    dataloader, problems = parse(images(), images(id="b", cache_dir_vae="/b", crop="maybe"), texts())
    assert [entry.id for entry in dataloader.image_sets] == ["pixart-camera"]
    assert len(errors_in(problems)) == 1


def test_false_as_text_is_false() -> None:
    dataloader, problems = parse(images(crop="False", maximum_image_size=MISSING, target_downsample_size=MISSING), texts(default="yes"))
    assert problems == []
    assert dataloader.image_sets[0].crop is False


def test_unknown_names_are_answered_with_the_nearest_known_one() -> None:
    _, problems = parse(images(instance_data_dirr="/x"), texts())
    assert problems[0].hint == "did you mean instance_data_dir?"


def test_fields_without_code_behind_them_may_hold_their_default() -> None:
    defaults = dict(later())
    dataloader, problems = parse(images(**defaults), texts(vae_cache_clear_each_epoch="false", resolution=None, instance_data_dir=""))
    assert problems == []
    assert len(dataloader.image_sets) == 1


def test_secrets_are_never_shown() -> None:
    _, problems = parse(images(aws_secret_access_key="wJalrXUtnFEMI"), texts())
    assert "wJalr" not in json.dumps([problem.as_dict() for problem in problems])
    assert problems[0].got == "(hidden)"


def test_placeholders_are_filled_in() -> None:
    dataloader, problems = parse(images(cache_dir_vae="{output_dir}/latents/{model_family}/{id}"), texts(cache_dir="/t/{id}"))
    assert problems == []
    assert dataloader.image_sets[0].vae_cache == "/out/latents/pixart_sigma/pixart-camera"
    assert dataloader.default_text_set.text_cache == "/t/pixart-text-embeds"


def test_braces_of_a_prompt_are_left_alone() -> None:
    dataloader, _ = parse(images(instance_prompt="a {red|blue} {thing} for {id}"), texts())
    assert dataloader.image_sets[0].instance_prompt == ("a {red|blue} {thing} for pixart-camera",)


def test_options_supply_the_fields_that_an_entry_leaves_out() -> None:
    entry = {"id": "a", "instance_data_dir": "/a"}
    globals_ = {
        "resolution": 1.0,
        "resolution_type": "area",
        "caption_strategy": "instanceprompt",
        "instance_prompt": "a cat",
        "write_batch_size": 3,
    }
    dataloader, problems = parse(entry, texts(), **globals_)
    found = dataloader.image_sets[0]
    assert errors_in(problems) == []
    assert (found.resolution, found.resolution_type, found.instance_prompt, found.write_batch_size) == (1.0, "area", ("a cat",), 3)


def test_an_entry_wins_over_the_options() -> None:
    dataloader, _ = parse(images(), texts(), resolution=512, resolution_type="pixel", caption_strategy="textfile", minimum_image_size=256)
    found = dataloader.image_sets[0]
    assert (found.resolution, found.resolution_type, found.caption_strategy, found.minimum_image_size) == (1.0, "area", "filename", 0.25)


@pytest.mark.parametrize(("unit", "expected"), [("area", 1.048576), ("pixel", 1024), ("pixel_area", 1024)])
def test_sizes_of_the_options_are_converted_to_the_unit_of_the_entry(unit: str, expected: float) -> None:
    dataloader, problems = parse({"id": "a", "instance_data_dir": "/a", "resolution_type": unit}, texts())
    assert problems == []
    assert dataloader.image_sets[0].resolution == pytest.approx(expected)


def test_megapixels_of_the_options_become_the_edge_of_a_square() -> None:
    dataloader, problems = parse(
        {"id": "a", "instance_data_dir": "/a", "resolution_type": "pixel"}, texts(), resolution=0.25, resolution_type="area"
    )
    assert problems == []
    assert dataloader.image_sets[0].resolution == 500


def test_the_first_text_set_becomes_the_default_if_none_is() -> None:
    dataloader, problems = parse(images(), texts(default=MISSING), texts(id="b", default=False))
    assert [(problem.code, problem.level) for problem in problems] == [("promoted", Level.NOTE)]
    assert dataloader.default_text_set.id == "pixart-text-embeds"


def test_a_single_text_set_is_the_default_without_a_note() -> None:
    dataloader, problems = parse(images(), texts(default=MISSING))
    assert problems == []
    assert dataloader.default_text_set.id == "pixart-text-embeds"


def test_the_parser_adds_a_text_set_if_the_file_has_none() -> None:
    dataloader, problems = parse(images())
    assert [(problem.code, problem.level) for problem in problems] == [("text_set_made", Level.NOTE)]
    assert dataloader.default_text_set.text_cache == "/out/cache/text/pixart_sigma"


def test_the_made_text_set_takes_no_id_that_is_used() -> None:
    dataloader, _ = parse(images(id="text-embeds"))
    assert dataloader.default_text_set.id == "text-embeds-2"


def test_a_set_of_images_may_name_its_text_set() -> None:
    dataloader, problems = parse(images(text_embed_cache="b"), texts(), texts(id="b", default=False, cache_dir="/b"))
    assert problems == []
    assert dataloader.text_set_of(dataloader.image_sets[0]).id == "b"


def test_disabled_entries_are_skipped_whatever_they_say() -> None:
    _, problems = parse(images(), {"id": "off", "disabled": True, "type": "nonsense", "what": 1}, texts())
    assert problems == []


@pytest.mark.parametrize("word", ["center", "centre", "CENTER"])
def test_both_spellings_of_the_centre_are_one(word: str) -> None:
    dataloader, _ = parse(images(crop_style=word), texts())
    assert dataloader.image_sets[0].crop_style == "center"


def test_the_old_name_of_discovery_is_understood() -> None:
    dataloader, problems = parse(images(metadata_backend="json"), texts())
    assert problems == []
    assert dataloader.image_sets[0].metadata_backend == "discovery"


def test_aspects_may_be_numbers_or_weighted() -> None:
    plain, _ = parse(images(crop_aspect="closest", crop_aspect_buckets=[1, 0.5]), texts())
    weighted, problems = parse(
        images(crop_aspect="random", crop_aspect_buckets=[{"aspect": 1, "weight": 0.25}, {"aspect": 0.5, "weight": 0.75}]), texts()
    )
    assert problems == []
    assert [(choice.aspect, choice.weight) for choice in plain.image_sets[0].crop_aspect_buckets] == [(1, 0.5), (0.5, 0.5)]
    assert [choice.weight for choice in weighted.image_sets[0].crop_aspect_buckets] == [0.25, 0.75]


def test_the_document_of_a_dataloader_parses_to_the_same_datasets() -> None:
    entries = [
        images(crop_aspect="random", crop_aspect_buckets=[1, 0.5], instance_prompt=["a", "b"]),
        images(id="b", cache_dir_vae=MISSING),
        texts(),
    ]
    first, _ = parse(*entries)
    document = json.loads(json.dumps(first.as_document()))
    second, problems = parse_dataloader(document, {"output_dir": "/elsewhere", "model_family": "other"})
    assert problems == []
    assert second == first


def test_paths_are_located_by_whoever_knows_where_they_lie() -> None:
    def locate(text: str, option: str, field: str) -> str | Problem:
        asked.append((option, field))
        return Problem.error(option, "not_found", f"{text} is nowhere.") if "nowhere" in text else f"/home{text}"

    asked: list[tuple[str, str]] = []
    document = [images(), images(id="b", instance_data_dir="/nowhere", cache_dir_vae="/nowhere/{id}"), texts()]
    dataloader, problems = parse_dataloader(document, OPTIONS, locate=locate)
    assert dataloader.image_sets[0].instance_data_dir == "/home/data/datasets/pseudo-camera-10k"
    assert codes(problems) == [("dataloader[1].instance_data_dir", "not_found"), ("dataloader[1].cache_dir_vae", "not_found")]
    assert ("dataloader[2].cache_dir", "cache_dir") in asked


def test_limits_without_crop_get_a_note_that_they_have_no_effect() -> None:
    _, problems = parse(images(crop=False), texts())
    assert [(problem.code, problem.level) for problem in problems] == [("no_effect", Level.NOTE)]


def test_every_field_of_the_format_is_either_declared_or_named_as_missing() -> None:
    declared = frozenset().union(*(allowed(kind) for kind in SETS))
    assert not declared & set(later())
    assert known_names() == declared | set(later()) | set(HINTS) | set(GONE)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    entry=st.dictionaries(st.sampled_from(sorted(known_names())) | st.text(max_size=6), JSON, max_size=12),
    base=st.sampled_from([{}, IMAGES, TEXTS]),
)
def test_no_document_breaks_the_parser(entry: dict[str, Any], base: dict[str, Any]) -> None:
    dataloader, problems = parse({**base, **entry}, texts(id="another", default=False))
    assert errors_in(problems) or dataloader.image_sets


@given(document=JSON)
def test_no_json_at_all_breaks_the_parser(document: Any) -> None:
    _, problems = parse_dataloader(document, OPTIONS)
    assert errors_in(problems)


def test_the_contract_reads_no_disk(tmp_path: Path) -> None:
    _, problems = parse(images(instance_data_dir=str(tmp_path / "missing")), texts())
    assert problems == []


def test_the_page_about_datasets_is_generated_from_the_fields() -> None:
    root = Path(__file__).resolve().parents[3]
    assert (root / "docs" / "datasets.md").read_text(encoding="utf-8") == page()


def test_the_example_of_the_page_is_valid() -> None:
    example = page().split("```json")[1].split("```")[0]
    _, problems = parse_dataloader(json.loads(example), OPTIONS)
    assert problems == []


def test_a_file_of_thousands_of_datasets_is_one_problem() -> None:
    _, problems = parse_dataloader([{**IMAGES, "id": f"set-{number}"} for number in range(1001)], OPTIONS)
    assert [(problem.option, problem.code) for problem in problems] == [("dataloader", "too_many")]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"model_family": "flux"}, ""),
        ({"model_family": "pixart_sigma"}, "no_effect"),
        ({"model_family": "flux", "flow_use_uniform_schedule": True}, "no_effect"),
        ({"model_family": "flux", "flow_use_beta_schedule": True}, "no_effect"),
    ],
)
def test_an_offset_of_timesteps_needs_the_sigmoid_of_flow_matching(options: dict[str, Any], code: str) -> None:
    _, problems = parse(images(timestep_sampling_offset=0.5), texts(), **options)
    assert codes(problems) == ([("dataloader[0].timestep_sampling_offset", code)] if code else [])
    assert codes(parse(images(timestep_sampling_offset=0), texts(), **options)[1]) == []
    assert codes(parse(images(timestep_sampling_offset=11), texts(), model_family="flux")[1]) == [
        ("dataloader[0].timestep_sampling_offset", "out_of_range")
    ]

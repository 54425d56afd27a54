"""Fields of datasets that need nothing, and those that say when a set is trained on and how it is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer_engine.config.test_datasets import codes, images, parse, texts
from trainer_engine.config.datasets.hints import GONE, HINTS
from trainer_engine.config.datasets.names import later, listed
from trainer_engine.contract.errors import Level, errors_in

ASKED: dict[str, Any] = {
    "skip_file_discovery": "vae,text",
    "metadata_update_interval": 65,
    "read_batch_size": "25",
    "image_processing_batch_size": 32,
    "hash_filenames": False,
    "cache_file_suffix": "camera",
    "conditioning_image_embeds": "seen",
    "cache_dir_conditioning_image_embeds": "cache/seen",
    "conditioning_image_embed_batch_size": 4,
}


@pytest.mark.parametrize("name", HINTS)
@pytest.mark.parametrize("base", [images, texts])
def test_a_hint_is_accepted_in_every_set_with_a_note(name: str, base: Any) -> None:
    dataloader, problems = parse(*(one(**{name: ASKED.get(name, True)} if one is base else {}) for one in (images, texts)))
    [note] = problems
    assert (note.code, note.level) == ("not_needed", Level.NOTE) and note.option.endswith(name)
    assert HINTS[name].reason in note.message and len(dataloader.image_sets) == 1


def test_hints_with_the_formats_defaults_are_silent() -> None:
    assert parse(images(**{name: listed()[name] for name in HINTS}), texts())[1] == []
    assert not set(HINTS) & set(later())


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("skip_file_discovery", "vae,everything", "not_a_choice"),
        ("skip_file_discovery", [["vae"]], "not_a_choice"),
        ("read_batch_size", "many", "not_a_number"),
        ("read_batch_size", True, "not_a_number"),
        ("metadata_update_interval", -1, "not_a_number"),
        ("scan_for_errors", "perhaps", "not_a_boolean"),
        ("cache_file_suffix", {"a": 1}, "not_text"),
    ],
)
def test_a_value_that_a_hint_cannot_have_is_refused(name: str, value: Any, code: str) -> None:
    assert codes(parse(images(**{name: value}), texts())[1]) == [(f"dataloader[0].{name}", code)]


@pytest.mark.parametrize("name", GONE)
def test_a_field_that_is_gone_is_a_note(name: str) -> None:
    [note] = parse(images(**{name: True}), texts())[1]
    assert (note.code, note.level) == ("gone", Level.NOTE) and "no longer part of the format" in note.message


def test_a_set_is_always_trained_on_by_default() -> None:
    [entry] = parse(images(), texts())[0].image_sets
    assert (entry.start_epoch, entry.start_step, entry.end_epoch, entry.end_step, entry.train_batch_size) == (1, 0, None, None, None)
    assert entry.gates.has_epoch(1) and entry.gates.has_step(1) and entry.gates.has_step(10**9) and not entry.gates.step_cuts


def test_both_starts_and_both_ends_hold() -> None:
    late = images(id="late", cache_dir_vae="/late", start_epoch="2", start_step="30", end_epoch=4, end_step=90)
    gates = parse(images(), late, texts())[0].image_sets[1].gates
    assert [gates.has_epoch(number) for number in (1, 2, 4, 5)] == [False, True, True, False]
    assert [gates.has_step(number) for number in (29, 30, 90, 91)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("fields", "field", "code"),
    [
        ({"start_epoch": -1}, "start_epoch", "out_of_range"),
        ({"start_step": 1.5}, "start_step", "not_a_whole_number"),
        ({"end_epoch": 1, "start_epoch": 2}, "end_epoch", "empty_range"),
        ({"end_step": 9, "start_step": 10}, "end_step", "empty_range"),
        ({"train_batch_size": 0}, "train_batch_size", "out_of_range"),
        ({"train_batch_size": True}, "train_batch_size", "not_a_whole_number"),
        ({"start_epoch": 2}, "start_epoch", "nothing_begins"),
        ({"start_step": 2}, "start_step", "nothing_begins"),
        ({"dataset_type": "eval", "end_step": 9}, "end_step", "not_for_type"),
        ({"max_upscale_threshold": 2}, "max_upscale_threshold", "out_of_range"),
        ({"max_workers": 0}, "max_workers", "out_of_range"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_at_its_field(fields: dict[str, Any], field: str, code: str) -> None:
    rest = [] if "nothing_begins" in code else [images(id="first", cache_dir_vae="/first")]
    assert codes(parse(images(**fields), *rest, texts())[1]) == [(f"dataloader[0].{field}", code)]


def test_a_set_that_is_never_trained_on_need_not_begin_at_once() -> None:
    assert errors_in(parse(images(), images(id="b", cache_dir_vae="/b", start_epoch=3), texts())[1]) == []
    never = images(id="b", cache_dir_vae="/b", probability=0)
    assert codes(parse(images(start_epoch=3), never, texts())[1]) == [("dataloader[0].start_epoch", "nothing_begins")]


def test_zero_is_no_end() -> None:
    [entry] = parse(images(end_epoch=0, end_step=0), texts())[0].image_sets
    assert entry.gates.has_epoch(10**6) and entry.gates.has_step(10**6)


def test_a_conditioning_set_follows_the_schedule_of_its_images() -> None:
    pair = {"id": "pair", "instance_data_dir": "/p", "conditioning_type": "reference_loose", "start_epoch": 1, "end_epoch": None}
    assert errors_in(parse(images(conditioning_data="pair"), pair, texts())[1]) == []
    refused = parse(images(conditioning_data="pair"), {**pair, "start_epoch": 2}, texts())[1]
    assert codes(refused) == [("dataloader[1].start_epoch", "not_for_type")]


def test_workers_and_caption_batches_of_a_set_win_over_the_options() -> None:
    dataloader, _ = parse(images(max_workers=3), texts(text_encoder_batch_size=5), max_workers=7, text_encoder_batch_size=9)
    assert (dataloader.image_sets[0].max_workers, dataloader.text_sets[0].text_encoder_batch_size) == (3, 5)
    dataloader, _ = parse(images(), texts(), max_workers=7, text_encoder_batch_size=9)
    assert (dataloader.image_sets[0].max_workers, dataloader.text_sets[0].text_encoder_batch_size) == (7, 9)


def test_upscaling_is_limited_for_random_aspects_alone() -> None:
    [note] = parse(images(max_upscale_threshold=0.2), texts())[1]
    assert (note.code, note.level) == ("no_effect", Level.NOTE)
    assert parse(images(max_upscale_threshold=0.2, crop_aspect="random", crop_aspect_buckets=[1.0, 2.0]), texts())[1] == []


SEEN: dict[str, Any] = {"id": "seen", "type": "local", "dataset_type": "conditioning_image_embeds"}


@pytest.mark.parametrize("fields", [{}, {"cache_dir": "cache/seen"}, {"disabled": False}])
def test_a_set_of_image_embeddings_is_accepted_with_a_note_that_it_needs_none(fields: dict[str, Any]) -> None:
    dataloader, problems = parse(images(conditioning_image_embeds="seen"), {**SEEN, **fields}, texts())
    assert [(problem.option, problem.code, problem.level) for problem in problems] == [
        ("dataloader[0].conditioning_image_embeds", "not_needed", Level.NOTE),
        ("dataloader[1].dataset_type", "not_needed", Level.NOTE),
    ]
    assert all("cached with the latents" in problem.message for problem in problems)
    assert len(dataloader.image_sets) == 1 and len(dataloader.text_sets) == 1


def test_a_set_of_image_embeddings_has_no_images_and_no_other_fields() -> None:
    for fields in ({"instance_data_dir": "/x"}, {"caption_strategy": "textfile"}, {"resolution": 512}):
        _, problems = parse(images(), {**SEEN, **fields}, texts())
        assert [problem.code for problem in errors_in(problems)] == ["not_for_type"]
    _, problems = parse(images(), {**SEEN, "type": "aws"}, texts())
    assert [problem.option for problem in errors_in(problems)] == ["dataloader[1].type"]
    assert [problem.code for problem in parse(images(), {**SEEN, "disabled": True}, texts())[1]] == []

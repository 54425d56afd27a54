"""Sets of ``image_embeds``: where the latents of the image set that names one are cached."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer_engine.config.test_datasets import codes, images, parse, texts
from trainer_engine.config.datasets import Dataloader
from trainer_engine.contract.errors import Level, Problem, errors_in

LATENTS: dict[str, Any] = {"id": "latents", "type": "local", "dataset_type": "image_embeds"}


def without_folder(**fields: Any) -> dict[str, Any]:
    return {**{name: value for name, value in images().items() if name != "cache_dir_vae"}, **fields}


def notes(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.option, problem.code) for problem in problems if problem.level is Level.NOTE]


def folder_of(found: Dataloader) -> str:
    return found.image_sets[0].vae_cache


def test_a_set_of_latents_without_a_folder_leaves_that_of_the_image_set() -> None:
    found, problems = parse(images(cache_dir_vae="/own", image_embeds="latents"), LATENTS, texts())
    assert problems == [] and folder_of(found) == "/own"


def test_the_folder_of_a_set_of_latents_is_taken_over() -> None:
    found, problems = parse(without_folder(image_embeds="latents"), {**LATENTS, "cache_dir": "/shared"}, texts())
    assert problems == [] and folder_of(found) == "/shared"


def test_the_folder_of_the_image_set_wins_with_a_note() -> None:
    found, problems = parse(images(cache_dir_vae="/own", image_embeds="latents"), {**LATENTS, "cache_dir": "/shared"}, texts())
    assert notes(problems) == [("dataloader[0].image_embeds", "no_effect")] and folder_of(found) == "/own"
    same = parse(images(cache_dir_vae="/own", image_embeds="latents"), {**LATENTS, "cache_dir": "/own"}, texts())
    assert same[1] == []


def test_two_image_sets_may_not_share_a_folder_of_latents() -> None:
    both = (without_folder(id=id, image_embeds="latents", instance_data_dir=f"/{id}") for id in ("a", "b"))
    assert codes(parse(*both, {**LATENTS, "cache_dir": "/shared"}, texts())[1]) == [("dataloader[1].cache_dir_vae", "shared_cache")]


@pytest.mark.parametrize("others", [(), ({**LATENTS, "id": "others"},)])
def test_a_set_of_latents_that_is_not_there_is_named(others: tuple[dict[str, Any], ...]) -> None:
    _, problems = parse(images(image_embeds="latents"), *others, texts())
    assert codes(problems) == [("dataloader[0].image_embeds", "unknown_reference")]


def test_a_set_of_latents_that_nobody_names_is_a_note() -> None:
    assert notes(parse(images(), LATENTS, texts())[1]) == [("dataloader[1].id", "not_linked")]


def test_a_disabled_set_of_latents_is_not_there() -> None:
    _, problems = parse(images(image_embeds="latents"), {**LATENTS, "disabled": True}, texts())
    assert codes(problems) == [("dataloader[0].image_embeds", "unknown_reference")]


def test_datasets_are_written_without_sets_of_latents() -> None:
    found, _ = parse(without_folder(image_embeds="latents"), {**LATENTS, "cache_dir": "/shared"}, texts())
    written = found.as_document()
    assert [entry["id"] for entry in written] == [found.image_sets[0].id, found.text_sets[0].id]
    again, problems = parse(*written)
    assert problems == [] and folder_of(again) == "/shared"


@pytest.mark.parametrize(("fields", "code"), [({"type": "memory"}, "not_available"), ({"type": "ram"}, "not_a_choice")])
def test_latents_lie_in_a_folder_of_this_machine(fields: dict[str, Any], code: str) -> None:
    _, problems = parse(images(image_embeds="latents"), {**LATENTS, **fields}, texts())
    assert ("dataloader[1].type", code) in codes(problems)


def test_fields_of_other_sets_have_no_effect_on_a_set_of_latents() -> None:
    _, problems = parse(images(image_embeds="latents"), {**LATENTS, "repeats": 3}, texts())
    assert codes(problems) == [("dataloader[1].repeats", "not_for_type")]
    assert errors_in(parse(images(image_embeds="latents"), {**LATENTS, "repeats": 0, "disabled": False}, texts())[1]) == []

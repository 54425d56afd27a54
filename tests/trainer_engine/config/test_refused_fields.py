"""Fields and kinds of datasets that are refused: each says why, and the report of compatibility counts what comes with a family."""

from __future__ import annotations

from typing import Any

import pytest

from tests.trainer_engine.config.test_datasets import images, parse, texts
from trainer_engine.config.compatibility import check_compatibility
from trainer_engine.config.datasets.docs import page
from trainer_engine.config.datasets.names import KIND, later
from trainer_engine.config.datasets.refused import FIELDS, KINDS, reason_of_field, refusal_of_field
from trainer_engine.config.options.refused import Reason
from trainer_engine.contract.errors import Problem, errors_in

SOUND = {"auto_split": True, "sample_rate": 16000, "channels": 1, "duration_interval": 3.0, "allow_zero_audio": False}
SONGS = {"id": "songs", "type": "huggingface", "dataset_type": "audio", "dataset_name": "owner/songs", "audio": {"channels": 1}}
CLIPS = {"id": "clips", "dataset_type": "video", "instance_data_dir": "/clips", "video": {"num_frames": 49, "min_frames": 49}}
TEXTS = {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"}
GIVEN: dict[str, Any] = {
    "model_type": "lora",
    "lora_type": "standard",
    "data_backend_config": "d.json",
    "output_dir": "output/x",
    "max_train_steps": 10,
}


def refusals(*entries: dict[str, Any]) -> list[Problem]:
    return errors_in(parse(*entries, texts())[1])


def named(family: str, *entries: dict[str, Any]) -> list[tuple[str, str]]:
    report = check_compatibility({**GIVEN, "model_family": family}, [*entries, TEXTS])
    return [(one.reason, one.problem.option) for one in report.obstacles]


@pytest.mark.parametrize("name", FIELDS)
def test_a_refused_field_says_what_it_is_for(name: str) -> None:
    [problem] = refusals(images(**{name: "something"}))
    assert (problem.option, problem.code) == (f"dataloader[0].{name}", "not_available")
    assert FIELDS[name].about in problem.message and not problem.message.endswith("..")


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_kind_says_what_it_holds(kind: str) -> None:
    [problem] = refusals(images(), {"id": "other", "dataset_type": kind.upper(), "instance_data_dir": "/x"})
    assert (problem.option, problem.code, problem.got) == ("dataloader[1].dataset_type", "not_available", kind)
    assert KINDS[kind].about in problem.message and "image, video" in problem.expected


@pytest.mark.parametrize(
    ("spelled", "kind", "reason"),
    [
        (" Grounding ", "grounding", Reason.FAMILY),
        (" Distillation-Cache ", "distillation_cache", Reason.RESEARCH),
    ],
)
def test_a_refused_kind_is_known_however_it_is_spelled(spelled: str, kind: str, reason: Reason) -> None:
    [problem] = refusals(images(), {"id": "other", "dataset_type": spelled, "instance_data_dir": "/x"})
    assert (problem.got, KINDS[kind].about in problem.message) == (kind, True)
    assert reason_of_field(problem.option, problem.got) is reason_of_field(problem.option, spelled) is reason
    assert named("wan", CLIPS, {"id": "other", "dataset_type": spelled, "instance_data_dir": "/x"})[0][0] == reason.value


@pytest.mark.parametrize("name", ["audio", "grounding", "s2v_datasets", "webshart"])
@pytest.mark.parametrize("value", [None, "", {}, [], False])
def test_a_refused_field_that_asks_for_nothing_is_silent(name: str, value: Any) -> None:
    assert parse(images(**{name: value}), texts())[1] == []


def test_a_kind_that_nobody_knows_is_no_choice() -> None:
    [problem] = refusals(images(), {"id": "other", "dataset_type": "smells"})
    assert (problem.option, problem.code) == ("dataloader[1].dataset_type", "not_a_choice")


def test_every_refused_field_is_a_field_of_the_format_without_code() -> None:
    assert set(FIELDS) <= set(later()) and set(KINDS) == set(KIND.later)
    assert not set(KINDS) & set(KIND.choices)


@pytest.mark.parametrize("family", ["ace_step", "heartmula", "minimaxmusic"])
def test_songs_of_a_family_that_is_not_here_come_with_the_family(family: str) -> None:
    assert named(family, SONGS) == [("family", "model_family")]


@pytest.mark.parametrize("family", ["cosmos3", "infinitetalk", "wan_s2v", "ltxvideo2"])
@pytest.mark.parametrize("fields", [{"audio": SOUND}, {"s2v_datasets": ["sound"]}])
def test_sound_of_a_family_that_is_not_here_come_with_the_family(family: str, fields: dict[str, Any]) -> None:
    assert named(family, {**CLIPS, **fields}) == [("family", "model_family")]


def test_sound_for_a_family_that_is_here_is_named_with_its_reason() -> None:
    assert named("wan", {**CLIPS, "audio": SOUND}) == [("family", "dataloader[0].audio")]
    assert named("wan", CLIPS, {"id": "sound", "dataset_type": "audio", "instance_data_dir": "/x"}) == [
        ("family", "dataloader[1].dataset_type")
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"delete_nsfw_images": True}, "research"),
        ({"grounding": {"enabled": True}}, "family"),
        ({"source": "owner/shards"}, "later"),
        ({"csv": {"file": "rows.csv"}}, "not_offered"),
        ({"memory_filesystem_size": "512G"}, "later"),
    ],
)
def test_each_reason_reaches_the_report(fields: dict[str, Any], reason: str) -> None:
    assert named("wan", {**CLIPS, **fields}) == [(reason, f"dataloader[0].{next(iter(fields))}")]


def test_a_field_without_a_reason_is_not_implemented_yet() -> None:
    assert refusal_of_field("no_such_field").reason is Reason.LATER
    assert reason_of_field("dataloader[3].dataset_type", "caption") is Reason.RESEARCH
    assert reason_of_field("dataloader[3].type", "webshart") is Reason.LATER


def test_the_page_lists_each_refused_kind_and_field_with_its_reason() -> None:
    text = page()
    assert all(f"- `dataset_type` `{kind}`: {refusal.about}." in text for kind, refusal in KINDS.items())
    assert all(f"- `{name}`: {refusal.about}." in text for name, refusal in FIELDS.items())

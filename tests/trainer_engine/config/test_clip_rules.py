"""What `validate` says of clips, before anything is loaded."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from trainer_engine.config.families import specs
from trainer_engine.config.parse import check_options
from trainer_engine.contract.errors import Problem

GIVEN = {"model_type": "lora", "output_dir": "o", "data_backend_config": "d", "max_train_steps": 1, "mixed_precision": "no"}
FRAMES = "validation_num_video_frames"
CLIPS = ("wan",)


def problems_of(family: str, **values: Any) -> list[Problem]:
    """The problems of the given options, without the note on PyAV, which depends on the machine."""
    _, problems = check_options({**GIVEN, "model_family": family, **values})
    return [problem for problem in problems if problem.option in values and problem.code != "no_mp4"]


def reported(family: str, **values: Any) -> list[tuple[str, str, str]]:
    return [(problem.option, problem.code, problem.level.value) for problem in problems_of(family, **values)]


@pytest.mark.parametrize(
    ("frames", "nearest"), [(2, "1 or 5"), (4, "1 or 5"), (6, "5 or 9"), (80, "77 or 81"), (82, "81 or 85"), (1024, "1021 or 1025")]
)
def test_a_length_that_wan_does_not_generate_is_refused_with_the_nearest_ones(frames: int, nearest: str) -> None:
    (problem,) = problems_of("wan", **{FRAMES: frames})
    assert (problem.option, problem.code, problem.level.value) == (FRAMES, "not_for_family", "error")
    assert (problem.got, problem.expected) == (str(frames), nearest)


@pytest.mark.parametrize("frames", [None, 0, 1, 5, 9, 77, 81])
def test_a_length_that_wan_generates_is_valid(frames: int | None) -> None:
    assert reported("wan", **{FRAMES: frames}) == []


def test_a_clip_longer_than_those_of_the_training_data_is_a_note() -> None:
    assert reported("wan", **{FRAMES: 85}) == [(FRAMES, "longer_than_trained", "note")]


@pytest.mark.parametrize("family", sorted(set(specs()) - set(CLIPS)))
def test_a_family_of_images_refuses_clips(family: str) -> None:
    (problem,) = problems_of(family, **{FRAMES: 5})
    assert (problem.code, problem.level.value, problem.got, problem.expected) == ("not_for_family", "error", "5", "nothing, or 1")
    assert reported(family, **{FRAMES: 1}) == []


@pytest.mark.parametrize("frames", [-1, 1026])
def test_a_number_of_frames_has_bounds(frames: int) -> None:
    assert reported("wan", **{FRAMES: frames}) == [(FRAMES, "out_of_range", "error")]


@pytest.mark.parametrize("rate", [0, 0.5, 61])
def test_a_rate_has_bounds(rate: float) -> None:
    assert reported("wan", framerate=rate, **{FRAMES: 5})[0] == ("framerate", "out_of_range", "error")


@pytest.mark.parametrize(
    ("values", "noted"),
    [
        ({FRAMES: 5, "framerate": 24}, None),
        ({"framerate": 24}, ("framerate", "no_effect", "note")),
        ({FRAMES: 1, "framerate": 24}, ("framerate", "no_effect", "note")),
        ({FRAMES: 5, "validation_image_format": "webp"}, ("validation_image_format", "no_effect", "note")),
        ({FRAMES: 5, "validation_image_format": "png"}, None),
        ({FRAMES: 5, "evaluation_type": "clip"}, ("evaluation_type", "first_frame", "note")),
        ({FRAMES: 5, "evaluation_type": "clip", "validation_disable": True}, ("evaluation_type", "no_effect", "note")),
    ],
)
def test_what_has_no_effect_on_a_clip_is_a_note(values: dict[str, Any], noted: tuple[str, str, str] | None) -> None:
    found = [one for one in reported("wan", **values) if one[1] in ("no_effect", "first_frame", "no_mp4")]
    assert found == ([noted] if noted else [])


@pytest.mark.parametrize(
    ("family", "values", "is_noted"),
    [
        ("wan", {FRAMES: 5}, True),
        ("wan", {FRAMES: 85}, True),
        ("wan", {FRAMES: 1}, False),
        ("wan", {FRAMES: 5, "validation_disable": True}, False),
        ("wan", {FRAMES: 6}, False),
        ("flux", {FRAMES: 5}, False),
    ],
)
def test_clips_without_pyav_are_noted_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, family: str, values: dict[str, Any], is_noted: bool
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    _, problems = check_options({**GIVEN, "model_family": family, **values})
    found = [(problem.option, problem.level.value, "[video]" in problem.hint) for problem in problems if problem.code == "no_mp4"]
    assert found == ([(FRAMES, "note", True)] if is_noted else [])


def test_the_length_of_a_clip_may_be_text_or_empty() -> None:
    assert reported("wan", **{FRAMES: "5"}) == reported("wan", **{FRAMES: ""}) == []

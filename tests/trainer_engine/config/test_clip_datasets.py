"""Sets of clips: the lengths in ``video``, their defaults and bounds, and models that take no clips."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_engine.config.datasets import Dataloader, parse_dataloader
from trainer_engine.config.datasets.image_set import ImageSet
from trainer_engine.config.datasets.names import later
from trainer_engine.config.datasets.object_fields import LONGEST_CLIP, ClipLength, aligned_frames
from trainer_engine.contract.errors import Level, Problem, errors_in

OPTIONS = {"model_family": "wan", "output_dir": "/out", "resolution": 480}
CLIPS = {"id": "waves", "dataset_type": "video", "instance_data_dir": "/data/waves", "caption_strategy": "filename"}
TEXTS = {"id": "texts", "dataset_type": "text_embeds", "default": True}


def parse(*entries: dict[str, Any], **options: Any) -> tuple[Dataloader, list[Problem]]:
    return parse_dataloader([*entries, TEXTS], {**OPTIONS, **options})


def clips(**video: Any) -> dict[str, Any]:
    return {**CLIPS, "video": video}


def only(dataloader: Dataloader) -> ImageSet:
    [found] = dataloader.image_sets
    return found


def notes(problems: list[Problem]) -> list[tuple[str, str]]:
    return [(problem.option, problem.code) for problem in problems if problem.level is not Level.ERROR]


def test_a_set_of_clips_has_five_seconds_and_batches_of_one() -> None:
    dataloader, problems = parse(CLIPS)
    found = only(dataloader)
    assert errors_in(problems) == [] and found.is_trained and found.noun == "clip"
    assert found.video == ClipLength(num_frames=149, min_frames=149)
    assert (found.vae_batch_size, found.write_batch_size) == (1, 1)
    assert ("dataloader[0].video.num_frames", "longer_than_trained") in notes(problems)
    slower, _ = parse(CLIPS, framerate=16)
    assert only(slower).video == ClipLength(num_frames=77, min_frames=77)
    given, _ = parse({**CLIPS, "vae_batch_size": 3}, vae_batch_size=8)
    assert only(given).vae_batch_size == 3


def test_a_number_of_frames_is_rounded_down_to_what_the_model_takes() -> None:
    dataloader, problems = parse(clips(num_frames=80))
    assert only(dataloader).video == ClipLength(num_frames=77, min_frames=77)
    assert notes(problems) == [("dataloader[0].video.num_frames", "rounded_for_family")]
    assert "77 of 80 frames" in problems[0].message
    longer = {"min_frames": 90, "max_frames": 500, "bucket_strategy": "resolution_frames", "frame_interval": 8}
    dataloader, problems = parse(clips(num_frames="81", **longer))
    assert problems == []
    assert only(dataloader).video == ClipLength.model_validate({"num_frames": 81, **longer})


@pytest.mark.parametrize(("frames", "stride", "aligned"), [(1, 4, 1), (4, 4, 1), (5, 4, 5), (81, 4, 81), (84, 4, 81), (0, 4, 1), (7, 1, 7)])
def test_a_length_is_one_frame_and_a_multiple_of_the_stride(frames: int, stride: int, aligned: int) -> None:
    assert aligned_frames(frames, stride) == aligned


@pytest.mark.parametrize(
    ("frames", "video", "trained"),
    [
        (100, {"num_frames": 17}, 17),
        (100, {"num_frames": 17, "bucket_strategy": "resolution_frames"}, 97),
        (100, {"num_frames": 17, "bucket_strategy": "resolution_frames", "frame_interval": 25}, 97),
        (99, {"num_frames": 17, "bucket_strategy": "resolution_frames", "frame_interval": 25}, 73),
        (18, {"num_frames": 17, "bucket_strategy": "resolution_frames", "frame_interval": 10}, 17),
        (100_000, {"num_frames": 17, "bucket_strategy": "resolution_frames"}, 1021),
    ],
)
def test_the_trained_length_of_a_clip_follows_the_strategy(frames: int, video: dict[str, Any], trained: int) -> None:
    assert ClipLength.model_validate(video).trained_frames(frames, 4) == trained


@pytest.mark.parametrize(
    ("video", "field", "code"),
    [
        ({"num_frames": 0}, "num_frames", "out_of_range"),
        ({"num_frames": LONGEST_CLIP + 1}, "num_frames", "out_of_range"),
        ({"num_frames": "many"}, "num_frames", "not_a_whole_number"),
        ({"num_frames": 9, "min_frames": 5}, "min_frames", "too_few_frames"),
        ({"num_frames": 9, "max_frames": 5}, "max_frames", "empty_range"),
        ({"num_frames": 9, "min_frames": 20, "max_frames": 12}, "max_frames", "empty_range"),
        ({"frame_interval": 0}, "frame_interval", "out_of_range"),
        ({"is_i2v": "perhaps"}, "is_i2v", "not_a_boolean"),
        ({"bucket_strategy": "frames"}, "bucket_strategy", "not_a_choice"),
        ({"num_frame": 9}, "num_frame", "unknown_field"),
    ],
)
def test_a_wrong_length_is_refused_at_its_key(video: dict[str, Any], field: str, code: str) -> None:
    dataloader, problems = parse(clips(**video))
    assert [(problem.option, problem.code) for problem in errors_in(problems)][0] == (f"dataloader[0].video.{field}", code)
    assert dataloader.image_sets == ()


def test_every_wrong_key_is_reported_at_once() -> None:
    _, problems = parse(clips(num_frames=0, min_frames=-1, bucket_strategy="x", is_i2v=7))
    assert [problem.option for problem in errors_in(problems) if "video." in problem.option] == [
        f"dataloader[0].video.{key}" for key in ("num_frames", "min_frames", "bucket_strategy", "is_i2v")
    ]


@pytest.mark.parametrize("given", ["no object", 3, [1]])
def test_lengths_that_are_no_object_are_refused(given: object) -> None:
    _, problems = parse({**CLIPS, "video": given})
    assert ("dataloader[0].video", "not_an_object") in [(problem.option, problem.code) for problem in errors_in(problems)]


def test_keys_without_an_effect_are_notes() -> None:
    dataloader, problems = parse(clips(num_frames=9, frame_interval=4, is_i2v=True))
    assert only(dataloader).video is not None
    assert notes(problems) == [("dataloader[0].video.frame_interval", "no_effect"), ("dataloader[0].video.is_i2v", "no_effect")]


@pytest.mark.parametrize("video", [{}, {"video": None}, {"video": {}}])
@pytest.mark.parametrize("flavour", ["t2v-480p-1.3b-2.1", "i2v-14b-2.1", "i2v-14b-2.1-720p"])
def test_clips_need_no_lengths_of_their_own_whatever_they_begin_with(video: dict[str, Any], flavour: str) -> None:
    dataloader, problems = parse({**CLIPS, **video}, model_flavour=flavour)
    assert only(dataloader) and errors_in(problems) == []


def test_a_model_of_images_refuses_clips_and_says_what_to_do() -> None:
    _, problems = parse(CLIPS, model_family="pixart_sigma")
    [problem] = [one for one in errors_in(problems) if one.code == "not_for_family"]
    assert problem.option == "dataloader[0].dataset_type" and "wan" in problem.hint and "images" in problem.message


def test_a_set_of_images_has_no_lengths() -> None:
    _, problems = parse({**CLIPS, "dataset_type": "image", "video": {"num_frames": 5}})
    [problem] = [one for one in errors_in(problems) if one.option == "dataloader[0].video"]
    assert problem.code == "not_for_type" and "dataset_type" in problem.hint
    dataloader, problems = parse({**CLIPS, "dataset_type": "image"})
    assert problems == [] and only(dataloader).video is None and "video" not in dataloader.as_document()[0]


def test_an_eval_set_holds_clips_if_it_has_their_lengths() -> None:
    held = {**CLIPS, "id": "held", "dataset_type": "eval"}
    dataloader, problems = parse(CLIPS, {**held, "video": {"num_frames": 9}})
    assert errors_in(problems) == [] and dataloader.eval_sets[0].video == ClipLength(num_frames=9, min_frames=9)
    dataloader, _ = parse(CLIPS, held)
    assert dataloader.eval_sets[0].video is None
    _, problems = parse({**CLIPS, "dataset_type": "image"}, {**held, "video": {"num_frames": 9}}, model_family="pixart_sigma")
    assert ("dataloader[1].video", "not_for_family") in [(problem.option, problem.code) for problem in errors_in(problems)]


def test_a_set_of_clips_survives_being_written_and_read() -> None:
    dataloader, _ = parse(clips(num_frames=81, max_frames=400))
    again, problems = parse_dataloader(dataloader.as_document(), OPTIONS)
    assert again == dataloader and errors_in(problems) == []


def test_video_is_a_field_of_the_format_that_is_there() -> None:
    assert "video" not in later()
    everything, _ = parse({**CLIPS, "crop": True, "crop_style": "center", "repeats": 3, "probability": 0.5, "resolution_type": "pixel"})
    assert (only(everything).crop, only(everything).repeats, only(everything).resolution_type) == (True, 3, "pixel")


def test_clips_of_every_length_begin_at_the_least_that_is_asked_for() -> None:
    lengths = {"bucket_strategy": "resolution_frames", "frame_interval": 25, "min_frames": 25, "max_frames": 250}
    dataloader, problems = parse(clips(**lengths))
    assert errors_in(problems) == []
    assert only(dataloader).video == ClipLength.model_validate({"num_frames": 25, **lengths})
    video = only(dataloader).video
    assert video is not None and [video.trained_frames(count, 4) for count in (25, 60, 119, 250)] == [25, 49, 97, 249]
    stepped, _ = parse(clips(bucket_strategy="resolution_frames", frame_interval=16))
    assert only(stepped).video == ClipLength(num_frames=13, min_frames=13, bucket_strategy="resolution_frames", frame_interval=16)
    free, _ = parse(clips(bucket_strategy="resolution_frames"))
    assert only(free).video == ClipLength(num_frames=1, min_frames=1, bucket_strategy="resolution_frames")


def test_the_rate_of_clips_is_that_of_their_files() -> None:
    dataloader, problems = parse(clips(num_frames=61, min_frames=61, frame_rate=25, bucket_strategy="aspect_ratio"))
    assert notes(problems) == [("dataloader[0].video.frame_rate", "no_effect")] and errors_in(problems) == []
    assert only(dataloader).video == ClipLength(num_frames=61, min_frames=61)
    wrong = errors_in(parse(clips(num_frames=0, frame_rate=25))[1])
    assert [(problem.option, problem.code) for problem in wrong] == [("dataloader[0].video.num_frames", "out_of_range")]

"""What ``validate`` says of Wan image-to-video: other weights, missing parts, data without clips, validations without a frame."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from environments.create.starter import starter_datasets
from tests.helpers.checked_runs import checked, codes, refusal
from tests.helpers.clips import moving_square, needs_pyav
from tests.helpers.models import options_with, tiny_model
from tests.helpers.tiny_run import tiny_datasets, tiny_options
from tests.trainer_engine.families.wan.test_clips import clip_datasets
from tests.trainer_engine.families.wan.test_first_frame import FLAVOUR, animating, model
from trainer_engine.config.compatibility import check_compatibility
from trainer_engine.config.components import model_sources
from trainer_engine.config.datasets import parse_dataloader
from trainer_engine.config.datasets.sizes import bytes_with_frame, size_rows
from trainer_engine.config.families import specs
from trainer_engine.config.family_spec import FamilySpec
from trainer_engine.config.parse import check_options
from trainer_engine.config.rules.noise_schedule import distillation_problems
from trainer_engine.contract.errors import Level, ModelUnavailable, errors_in
from trainer_engine.families.wan.spec import ANIMATING, EMBEDDING, SPEC, defaults_of
from training.preflight.summary import PreflightReport

HERE = {"model_family": "wan", "model_flavour": FLAVOUR, "resolution": 64}
every_animating = pytest.mark.parametrize("flavour", sorted(ANIMATING))


def report_of(place: Path, datasets: list[dict[str, Any]] | None = None, **options: Any) -> PreflightReport:
    return checked(place, datasets=datasets or clip_datasets(place), **{**HERE, "model": model(), **options})


def problems_of(**values: Any) -> dict[str, Level]:
    """Code -> level of the problems of these options, which need no files."""
    chosen = tiny_options(Path("/place"), model="owner/weights", **{**HERE, "validation_disable": False, **values})
    return {problem.code: problem.level for problem in check_options(chosen)[1]}


@needs_pyav
@every_animating
def test_validate_accepts_clips_and_counts_what_the_first_frame_needs(tmp_path: Path, flavour: str) -> None:
    report = report_of(tmp_path, model_flavour=flavour, validation_disable=False, validation_num_video_frames=5)
    assert report.errors == []
    text = checked(tmp_path, datasets=clip_datasets(tmp_path), model_family="wan", model=str(tiny_model("wan")), resolution=64)
    more = report.understood["disk"]["caches_bytes"] - text.understood["disk"]["caches_bytes"]
    assert more > 4 * 4 * EMBEDDING, "four clips, each with latents and the embedding of a frame in float32"


@needs_pyav
def test_validate_and_the_engine_refuse_weights_of_text_to_video(tmp_path: Path) -> None:
    lacking, problem = report_of(tmp_path, model=str(tiny_model("wan"))).errors
    assert {lacking.option, problem.option} == {"pretrained_model_name_or_path"}
    assert (lacking.code, problem.code) == ("component_missing", "other_model")
    assert "no folder image_encoder and no image_processor" in lacking.message
    assert "Wan text-to-video" in problem.message and "trains Wan image-to-video" in problem.message
    family = animating()
    family.parts.options = options_with(**HERE, pretrained_model_name_or_path=str(tiny_model("wan"))).model
    with pytest.raises(ModelUnavailable, match="trains Wan image-to-video"):
        family.parts.find("transformer")


@needs_pyav
def test_validate_refuses_weights_of_image_to_video_for_text_to_video(tmp_path: Path) -> None:
    problem = refusal(report_of(tmp_path, model_flavour=None))
    assert problem.code == "other_model" and problem.hint.startswith("set model_flavour=i2v-14b-2.1")


@needs_pyav
@pytest.mark.parametrize("folder", ["image_encoder", "image_processor"])
def test_validate_and_the_engine_refuse_a_model_without_what_sees_the_frame(tmp_path: Path, folder: str) -> None:
    other = shutil.copytree(model(), tmp_path / "model", ignore=shutil.ignore_patterns(folder))
    problem = refusal(report_of(tmp_path, model=str(other)))
    assert (problem.option, problem.code) == ("pretrained_model_name_or_path", "component_missing") and folder in problem.message
    family = animating()
    family.parts.base = type(family.parts.base)(str(other))
    family.parts.options = options_with(**HERE, pretrained_model_name_or_path=str(other)).model
    with pytest.raises(ModelUnavailable, match=f"has no folder {folder}"):
        family.parts.find(folder)


def test_validate_refuses_stills_alone(tmp_path: Path) -> None:
    problem = refusal(report_of(tmp_path, tiny_datasets(tmp_path)))
    assert (problem.option, problem.code, problem.expected) == ("dataloader[0].dataset_type", "clips_needed", "video")


@needs_pyav
def test_validate_warns_of_stills_beside_clips_and_of_clips_of_one_frame(tmp_path: Path) -> None:
    clips, texts = clip_datasets(tmp_path)
    stills, _ = tiny_datasets(tmp_path, cache_dir_vae=str(tmp_path / "cache/stills"))
    report = report_of(tmp_path, [clips, stills, texts])
    assert report.errors == []
    [warning] = [problem for problem in report.problems if problem.code == "frame_is_given"]
    assert (warning.level, warning.option) == (Level.WARNING, "dataloader[1].dataset_type")
    assert "clips_needed" in codes(report_of(tmp_path, clip_datasets(tmp_path, video={"num_frames": 1})))
    plain = checked(tmp_path, datasets=[clips, stills, texts], model_family="wan", model=str(tiny_model("wan")), resolution=64)
    assert "frame_is_given" not in codes(plain)


@needs_pyav
def test_validate_names_sets_that_lend_no_first_frame(tmp_path: Path) -> None:
    shown: dict[str, Any] = {"validation_disable": False, "validation_num_video_frames": 5}
    silent = clip_datasets(tmp_path, disable_validation=True)
    assert refusal(report_of(tmp_path, silent, **shown)).code == "no_pairs"
    moving_square(1)[0].save(tmp_path / "own.png")
    inputs = json.dumps([{"path": str(tmp_path / "own.png"), "prompt": "it moves"}])
    assert report_of(tmp_path, silent, **shown, validation_input=inputs).errors == []
    assert report_of(tmp_path, silent, validation_disable=True).errors == []


def test_validations_need_a_first_frame_and_more_than_it() -> None:
    assert problems_of(validation_using_datasets=False)["no_first_frame"] is Level.ERROR
    named = problems_of(validation_using_datasets=False, validation_input='[{"path": "/a.png", "prompt": "it moves"}]')
    assert {"no_first_frame", "not_for_family", "frame_is_given"}.isdisjoint(named)
    assert problems_of(validation_num_video_frames=1)["frame_is_given"] is Level.NOTE
    assert {"no_first_frame", "frame_is_given"}.isdisjoint(problems_of())
    assert "no_first_frame" not in problems_of(validation_using_datasets=False, validation_disable=True)
    assert "no_first_frame" not in problems_of(validation_using_datasets=False, model_flavour="t2v-480p-14b-2.1")


@pytest.mark.parametrize(
    ("flavour", "given", "noted"),
    [
        (FLAVOUR, {"is_i2v": True}, False),
        (FLAVOUR, {}, False),
        (FLAVOUR, {"is_i2v": False}, True),
        ("t2v-480p-14b-2.1", {"is_i2v": True}, True),
        ("t2v-480p-14b-2.1", {"is_i2v": False}, False),
        ("t2v-480p-14b-2.1", {}, False),
    ],
)
def test_is_i2v_is_a_note_where_the_flavour_decides_otherwise(flavour: str, given: dict[str, bool], noted: bool) -> None:
    entry = {"id": "clips", "dataset_type": "video", "instance_data_dir": "/clips", "video": {"num_frames": 5, **given}}
    _, problems = parse_dataloader([entry], options_with(**{**HERE, "model_flavour": flavour}))
    assert errors_in(problems) == []
    assert [problem.option for problem in problems if problem.code == "no_effect"] == (["dataloader[0].video.is_i2v"] if noted else [])


@every_animating
def test_the_facts_of_a_flavour_that_animates(flavour: str) -> None:
    assert SPEC.animates(flavour) and not SPEC.animates(None) and SPEC.parameters[flavour] == 16_394_878_784
    run = SPEC.of_flavour(flavour)
    assert set(run.base_folders) - set(SPEC.base_folders) == {"image_encoder", "image_processor"}
    assert SPEC.of_flavour(None) is SPEC and SPEC.of_flavour("t2v-480p-14b-2.1") is SPEC
    size = "720p" if flavour.endswith("720p") else "480p"
    assert SPEC.defaults_of(flavour)["flow_schedule_shift"] == (5.0 if size == "720p" else 3.0)
    assert SPEC.defaults_of(flavour)["resolution"] == int(size[:-1])
    assert SPEC.defaults_of(flavour)["validation_num_video_frames"] == 81
    assert size in SPEC.repository(flavour).lower() and flavour not in SPEC.other_flavours
    assert set(defaults_of([flavour])) == {flavour}
    sources = model_sources(options_with(model_family="wan", model_flavour=flavour, pretrained_model_name_or_path=None).model, run)
    assert set(sources.values()) == {SPEC.repository(flavour)}


def test_entries_of_a_flavour_that_animates_are_counted_with_their_frames() -> None:
    assert bytes_with_frame(SPEC, 1000) == 2000 + 2 * EMBEDDING and bytes_with_frame(SPEC, 1000, number=4) == 2000 + 4 * EMBEDDING
    rows = {title: float(short) for title, short, _, _ in size_rows(specs())}
    given = rows["`wan`, the same with their first frames"]
    assert given == pytest.approx(2 * rows["`wan`, clips of 81 frames of 832x480 px"] + 100_000 * 2 * EMBEDDING / 1e9, abs=0.2)
    assert sum("first frames" in title for title in rows) == 1


def test_a_new_environment_begins_with_clips_where_the_flavour_animates() -> None:
    [clips, _] = starter_datasets("new", {"model_family": "wan", "model_flavour": FLAVOUR})
    assert clips["dataset_type"] == "video" and clips["video"] == {"num_frames": 81}
    [images, _] = starter_datasets("new", {"model_family": "wan"})
    assert images["dataset_type"] == "image" and "video" not in images
    _, problems = parse_dataloader([clips], options_with(**HERE))
    assert errors_in(problems) == []


@pytest.mark.parametrize("spec", list(specs().values()), ids=lambda spec: spec.name)
def test_only_flavours_of_the_family_are_given_first_frames(spec: FamilySpec) -> None:
    given = {flavour for flavour in spec.flavours if spec.animates(flavour)}
    assert given == (set(spec.first_frame.flavours) if spec.first_frame else set())
    assert spec.default_flavour not in given and (not given or spec.sampling.clips is not None)


@every_animating
def test_a_configuration_of_the_flavour_starts(flavour: str) -> None:
    given = {f"--{name}": value for name, value in tiny_options(Path("/place"), model=SPEC.repository(flavour)).items()}
    chosen = {**given, "--model_family": "wan", "--model_flavour": flavour, "--model_type": "lora", "--lora_type": "standard"}
    clips = {
        "id": "clips",
        "type": "local",
        "dataset_type": "video",
        "instance_data_dir": "clips",
        "video": {"num_frames": 81, "is_i2v": True},
    }
    texts = {"id": "texts", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"}
    assert [str(one.problem) for one in check_compatibility(chosen, [clips, texts]).obstacles] == []


@pytest.mark.parametrize("flavour", list(SPEC.flavours))
def test_distilled_weights_of_a_flavour_name_its_own_base(flavour: str) -> None:
    options = options_with(**{**HERE, "model_flavour": flavour, "pretrained_model_name_or_path": "owner/Wan2.1-Distill-Lightning"})
    [problem] = distillation_problems(options, SPEC, scheduler={}, network={}, pipeline={})
    assert problem.expected.endswith(SPEC.repository(flavour)) and f"train {SPEC.repository(flavour)}" in problem.hint

"""Whole runs of the editing flavour on references that are generated from the images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFilter

from tests.helpers.params import first_fast
from tests.helpers.resuming import assert_resumes_exactly
from tests.helpers.tiny_run import Listener
from tests.trainer_engine.families.flux.test_kontext import adapter, kontext, paint
from tests.trainer_engine.loop.test_saving import run_of
from trainer_engine.contract.errors import CheckpointUnusable
from trainer_engine.contract.events import ImageEvent, Notification, StageEvent

BLUR = {"type": "superresolution", "blur_radius": 3.0, "add_noise": False}
EXAMPLE = [
    {
        "type": "superresolution",
        "blur_radius": 2.5,
        "blur_type": "gaussian",
        "add_noise": True,
        "noise_level": 0.03,
        "jpeg_quality": 85,
        "downscale_factor": 2,
        "captions": ["sharpen it", "make it clear"],
    },
    {"type": "jpeg_artifacts", "quality_mode": "range", "quality_range": [10, 30], "captions": ["remove the artifacts"]},
    {"type": "canny", "low_threshold": 50, "high_threshold": 100},
]


def edits(place: Path, *conditioning: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    paint(place / "edits", shade=200)
    images = {
        "id": "edits",
        "instance_data_dir": str(place / "edits"),
        "caption_strategy": "textfile",
        "crop": True,
        "crop_style": "random",
    }
    caches = {"cache_dir_vae": str(place / "cache/edits"), "conditioning": list(conditioning)}
    return [{**images, **caches, **fields}, {"id": "texts", "dataset_type": "text_embeds", "cache_dir": str(place / "cache/text")}]


@pytest.mark.parametrize("sampling", first_fast(["random", "combined"]))
def test_a_resumed_run_equals_the_straight_one(sampling: str, tmp_path: Path) -> None:
    entries = [{key: value for key, value in one.items() if key != "captions"} for one in EXAMPLE] if sampling == "combined" else EXAMPLE
    datasets = edits(tmp_path, *entries)
    options = {"conditioning_multidataset_sampling": sampling, "cache_dir": str(tmp_path / "cache")}
    assert_resumes_exactly(tmp_path, kontext, datasets=datasets, **options)
    folders = {path.name: len(list(path.rglob("*.png"))) for path in (tmp_path / "cache/conditioning_data").iterdir()}
    assert folders == {f"edits_conditioning_{one['type']}": 4 for one in EXAMPLE}


def test_a_generated_reference_trains_what_the_same_picture_in_a_folder_does(tmp_path: Path) -> None:
    generated = kontext(tmp_path, edits(tmp_path, BLUR), output_dir=str(tmp_path / "generated"))
    (tmp_path / "refs").mkdir()
    for file in (tmp_path / "edits").glob("*.png"):
        with Image.open(file) as image:
            image.convert("RGB").filter(ImageFilter.GaussianBlur(3.0)).save(tmp_path / "refs" / file.name)
    by_hand = edits(tmp_path, conditioning_data=["refs"])
    by_hand.append({"id": "refs", "conditioning_type": "reference_strict", "instance_data_dir": str(tmp_path / "refs")})
    assert adapter(kontext(tmp_path, by_hand, output_dir=str(tmp_path / "by-hand"))) == adapter(generated)


def test_a_control_image_trains_the_editing_flavour_like_a_reference_of_the_same_size(tmp_path: Path) -> None:
    canny = {"type": "canny", "captions": ["follow the lines"]}
    kinds = ("reference_strict", "controlnet")
    strict, control = (
        kontext(tmp_path, edits(tmp_path, {**canny, "conditioning_type": kind}), output_dir=str(tmp_path / kind), max_train_steps=2)
        for kind in kinds
    )
    assert adapter(strict) == adapter(control)


def test_the_making_is_a_stage_and_a_second_run_makes_nothing(tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path / "cache"), "max_train_steps": 1}
    first = kontext(tmp_path, edits(tmp_path, BLUR), output_dir=str(tmp_path / "one"), **options)
    stages = [event for event in first.heard.of(StageEvent) if event.label == "references of edits"]
    assert stages[-1].status == "completed" and (stages[-1].current, stages[-1].total) == (4, 4)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/conditioning_data").rglob("*.png")}
    kontext(tmp_path, edits(tmp_path, BLUR), output_dir=str(tmp_path / "two"), **options)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache/conditioning_data").rglob("*.png")} == stamps


def test_captions_of_a_generated_reference_replace_those_of_its_image(tmp_path: Path) -> None:
    read: set[tuple[str, int]] = set()
    trainer, *_ = run_of(
        tmp_path,
        Listener(),
        datasets=edits(tmp_path, *EXAMPLE),
        model_family="flux",
        model_flavour="kontext",
        model_type="lora",
        model=kontext_model(),
        caption_dropout_probability=0,
        max_train_steps=30,
    )
    collator = trainer.loader.collator
    for step in range(30):
        for number, batch in enumerate(trainer.loader.sampler.step(step)):
            [chosen] = collator._reference_sets(step, number, batch)
            read |= {(collator.caption(step, index, item, [chosen]), chosen) for index, item in enumerate(batch)}
    assert {text for text, chosen in read if chosen == 0} == {"sharpen it", "make it clear"}
    assert {text for text, chosen in read if chosen == 1} == {"remove the artifacts"}
    assert {text for text, chosen in read if chosen == 2} == {f"make it number {number}" for number in range(4)}
    trainer.loader.load(0)


def kontext_model() -> str:
    from tests.helpers.models import tiny_model

    return str(tiny_model("flux", flavour="kontext"))


def test_a_run_does_not_resume_with_other_fields_of_a_generator(tmp_path: Path) -> None:
    kontext(tmp_path, edits(tmp_path, BLUR))
    with pytest.raises(CheckpointUnusable, match="4 changed"):
        kontext(tmp_path, edits(tmp_path, {**BLUR, "blur_radius": 1.0}), resume_from_checkpoint="latest")


def test_an_image_that_breaks_before_the_run_leaves_its_pair_out(tmp_path: Path) -> None:
    datasets = edits(tmp_path, BLUR)
    torn = tmp_path / "edits/1.png"
    content = bytearray(torn.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 255
    torn.write_bytes(content)
    run = kontext(tmp_path, datasets, max_train_steps=1)
    told = " ".join(event.message for event in run.heard.of(Notification) if event.code == "files_left_out")
    assert "1.png" in told


def test_a_generated_mask_weights_the_loss(tmp_path: Path) -> None:
    datasets = edits(tmp_path, BLUR, {"type": "random_masks", "conditioning_type": "mask", "edge_blur": False})
    trainer, *_ = run_of(
        tmp_path, Listener(), datasets=datasets, model_family="flux", model_flavour="kontext", model_type="lora", model=kontext_model()
    )
    batch = trainer.loader.load(0).passes[0]
    assert batch.loss_mask is not None and len(batch.references) == 1
    for mask in batch.loss_mask:
        assert 0 < mask.mean() < 1 and torch.isfinite(mask).all()


def test_validation_shows_the_generated_references_with_their_captions(tmp_path: Path) -> None:
    drawing = {"validation_disable": False, "validation_resolution": "64x64", "validation_num_inference_steps": 1}
    run = kontext(tmp_path, edits(tmp_path, EXAMPLE[1]), max_train_steps=1, num_eval_images=2, **drawing)
    final = [event for event in run.heard.of(ImageEvent) if event.validation_type == "final"]
    assert [event.prompt for event in final] == ["remove the artifacts"] * 2

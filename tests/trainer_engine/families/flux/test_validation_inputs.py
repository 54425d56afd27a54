"""Which images the editing flavour generates in a validation, and with which inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers.tiny_run import HereRun
from tests.trainer_engine.families.flux.test_kontext import kontext, paint, pairs
from trainer_engine.contract.errors import DatasetUnusable
from trainer_engine.contract.events import ImageEvent, Notification

DRAWING: dict[str, Any] = {
    "validation_disable": False,
    "validation_disable_unconditional": True,
    "validation_resolution": "64x64",
    "validation_num_inference_steps": 1,
    "disable_benchmark": True,
    "num_eval_images": 1,
    "max_train_steps": 1,
}


def final(run: HereRun) -> list[ImageEvent]:
    return [event for event in run.heard.of(ImageEvent) if event.validation_type == "final"]


def prompts(run: HereRun) -> list[str]:
    return [event.prompt for event in final(run)]


def files(run: HereRun) -> list[Path]:
    return [Path(file) for event in final(run) if (file := event.images[0].file)]


def inputs(place: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 60), (250 - 100 * number, 30, 90 * number)).save(place / name)
    return json.dumps([{"path": str(place / name), "prompt": f"edit {name}"} for name in names])


def test_inputs_of_the_options_are_edited_instead_of_pairs_each_with_its_own_prompt(tmp_path: Path) -> None:
    given = inputs(tmp_path, "one/room.png", "two/room.png")
    run = kontext(tmp_path, pairs(tmp_path, "reference_strict"), validation_input=given, validation_prompt="all of them", **DRAWING)
    assert prompts(run) == ["edit one/room.png", "edit two/room.png"]
    assert [path.name for path in files(run)] == ["step_1_room_0_64x64.png", "step_1_room-2_0_64x64.png"]
    assert files(run)[0].read_bytes() != files(run)[1].read_bytes()


def test_an_input_is_the_reference_that_the_network_sees(tmp_path: Path) -> None:
    """With the same prompt and seed, an image depends on its input alone."""
    (tmp_path / "same").mkdir()
    options = {**DRAWING, "output_dir": str(tmp_path / "first")}
    given = json.loads(inputs(tmp_path, "a.png", "b.png"))
    for one in given:
        one["prompt"] = "the same"
    Image.open(tmp_path / "a.png").save(tmp_path / "same/copy.png")
    given.append({"path": str(tmp_path / "same/copy.png"), "prompt": "the same", "shortname": "copy"})
    run = kontext(tmp_path, pairs(tmp_path, "reference_strict"), validation_input=json.dumps(given), **options)
    one, other, copy = (path.read_bytes() for path in files(run))
    assert one == copy != other
    assert files(run)[2].name == "step_1_copy_0_64x64.png"


@pytest.mark.parametrize(
    ("using", "given", "wanted"),
    [
        (None, False, {"make it number 0", "a photo"}),
        (True, False, {"make it number 0", "a photo"}),
        (False, False, {"a photo"}),
        (True, True, {"edit x.png", "make it number 0", "a photo"}),
        (False, True, {"edit x.png"}),
    ],
)
def test_validation_using_datasets_decides_whether_pairs_are_shown(
    using: bool | None, given: bool, wanted: set[str], tmp_path: Path
) -> None:
    more = {"validation_input": inputs(tmp_path, "x.png")} if given else {}
    run = kontext(
        tmp_path, pairs(tmp_path, "reference_strict"), validation_using_datasets=using, validation_prompt="a photo", **more, **DRAWING
    )
    assert set(prompts(run)) == wanted


def test_a_set_with_disable_validation_lends_nothing(tmp_path: Path) -> None:
    datasets = pairs(tmp_path, "reference_strict")
    paint(tmp_path / "quiet", shade=90)
    quiet = {**datasets[0], "id": "quiet", "instance_data_dir": str(tmp_path / "quiet"), "cache_dir_vae": str(tmp_path / "cache/quiet")}
    for number in range(4):
        (tmp_path / f"quiet/{number}.txt").write_text(f"quiet {number}")
    run = kontext(tmp_path, [*datasets, {**quiet, "disable_validation": True}], **DRAWING)
    assert prompts(run) == ["make it number 0"]
    datasets[0]["disable_validation"] = True
    with pytest.raises(DatasetUnusable, match="No dataset has references that validations may use"):
        kontext(tmp_path, datasets, output_dir=str(tmp_path / "none"), validation_using_datasets=True, **DRAWING)


def test_captions_of_an_eval_set_with_disable_validation_are_no_prompts(tmp_path: Path) -> None:
    from tests.helpers.tiny_run import train_here, with_held_out

    datasets = with_held_out(tmp_path, "shown", "hidden")
    datasets[-1]["disable_validation"] = True
    drawing = {**DRAWING, "num_eval_images": 2}
    run = train_here(tmp_path, datasets=datasets, **drawing)
    assert len(prompts(run)) == 2
    [evaluated] = [event for event in run.heard.of(Notification) if event.code == "evaluation"][-1:]
    assert "eval_loss/hidden" in evaluated.details["metrics"]


@pytest.mark.parametrize("location", ["left", "bottom"])
def test_the_input_is_shown_beside_the_image(location: str, tmp_path: Path) -> None:
    datasets = pairs(tmp_path, "reference_strict")
    options = {**DRAWING, "validation_input": inputs(tmp_path, "x.png"), "resolution": 128}
    options["output_dir"] = str(tmp_path / "stitched")
    run = kontext(tmp_path, datasets, validation_stitch_input_location=location, **options)
    alone = kontext(tmp_path, datasets, **{**options, "output_dir": str(tmp_path / "alone")})
    [with_input], [bare] = files(run), files(alone)
    with Image.open(with_input) as joined, Image.open(bare) as result:
        assert with_input.name == bare.name and result.size == (64, 64)
        if location == "left":
            width = joined.width - 64
            assert joined.height == 64 and width > 64, "the input is wide"
            assert joined.crop((width, 0, joined.width, 64)).tobytes() == result.tobytes()
        else:
            assert joined.width == 64 and 64 < joined.height < 128
            assert joined.crop((0, 0, 64, 64)).tobytes() == result.tobytes()
        place = (5, 32) if location == "left" else (32, joined.height - 5)
        found = joined.convert("RGB").getpixel(place)
        assert isinstance(found, tuple) and all(abs(one - other) <= 3 for one, other in zip(found, (250, 30, 0), strict=True))

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFont

from trainer_engine.contact_sheet import SheetImage, _wrapped, find_images, write_contact_sheet


def drawn(folder: Path, name: str, colour: str) -> Path:
    folder.mkdir(exist_ok=True)
    width, height = (int(edge) for edge in name.removesuffix(".png").rsplit("_", 1)[1].split("x"))
    Image.new("RGB", (width, height), colour).save(folder / name)
    return folder / name


def test_files_are_found_by_their_names(tmp_path: Path) -> None:
    drawn(tmp_path, "step_0_validation_0_64x64.png", "red")
    drawn(tmp_path, "step_10_validation_ema_1_64x128.png", "red")
    (tmp_path / "notes.txt").write_text("not an image")
    found = find_images(tmp_path, {"validation": "a red circle"})
    assert [(image.step, image.column, image.caption) for image in found] == [
        (0, "validation 64x64 0", "a red circle"),
        (10, "validation_ema 64x128 1", "validation_ema"),
    ]


def test_the_sheet_shows_every_image_with_rows_in_order_of_steps(tmp_path: Path) -> None:
    colours = {(10, "a"): (200, 0, 0), (10, "b"): (0, 200, 0), (2, "a"): (0, 0, 200)}
    images = []
    for (step, column), colour in colours.items():
        path = tmp_path / f"step_{step}_{column}_0_128x128.png"
        Image.new("RGB", (128, 128), colour).save(path)
        images.append(SheetImage(path, step, column, f"prompt of {column}"))
    write_contact_sheet(tmp_path / "sheet.png", images, title="A run", subtitle="of three images")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = sheet.load()
        places: dict[tuple[int, int, int], tuple[int, int]] = {}
        for y in range(0, sheet.height, 4):
            for x in range(0, sheet.width, 4):
                places.setdefault(pixels[x, y], (x, y))
    blue, red, green = (places[colour] for colour in ((0, 0, 200), (200, 0, 0), (0, 200, 0)))
    assert blue[1] < red[1] == green[1]
    assert blue[0] == red[0] < green[0]


def test_large_images_are_scaled_down(tmp_path: Path) -> None:
    path = drawn(tmp_path, "step_1_a_0_1024x512.png", "teal")
    write_contact_sheet(tmp_path / "sheet.png", [SheetImage(path, 1, "a", "wide")])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width < 500


def test_long_prompts_are_wrapped_and_end_in_an_ellipsis() -> None:
    font = ImageFont.load_default(14)
    lines = _wrapped("a very long prompt about " + "many different things " * 20, font, 200)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 200 for line in lines)
    assert _wrapped("x" * 200, font, 100)[0].endswith("…")
    assert _wrapped("", font, 200) == ["(no prompt)"]


def test_no_images_are_an_error_and_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs an image"):
        write_contact_sheet(tmp_path / "sheet.png", [])
    assert list(tmp_path.iterdir()) == []

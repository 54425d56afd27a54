"""Real image files with captions, drawn on the spot."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw

SHAPES = ("circle", "square", "triangle")


def generate_images(
    folder: Path, *, count: int, size: tuple[int, int] = (96, 96), captions: str = "filename", kinds: tuple[str, ...] = ("png", "jpg")
) -> list[Path]:
    """``count`` pictures of (width, height) ``size``; their names, or text files beside them, say what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for number in range(count):
        dice = random.Random(number)
        shape = SHAPES[number % len(SHAPES)]
        red, green, blue = (int(255 * part) for part in colorsys.hsv_to_rgb(dice.random(), 0.8, 0.9))
        image = Image.new("RGB", size, (dice.randrange(60), dice.randrange(60), 90 + dice.randrange(60)))
        box = (size[0] * 0.2, size[1] * 0.2, size[0] * 0.8, size[1] * 0.8)
        pen = ImageDraw.Draw(image)
        if shape == "circle":
            pen.ellipse(box, fill=(red, green, blue))
        elif shape == "square":
            pen.rectangle(box, fill=(red, green, blue))
        else:
            pen.polygon([(box[0], box[3]), (box[2], box[3]), (size[0] / 2, box[1])], fill=(red, green, blue))
        path = folder / f"a_{shape}_of_hue_{red:03d}_{number:03d}.{kinds[number % len(kinds)]}"
        image.save(path)
        if captions == "textfile":
            path.with_suffix(".txt").write_text(f"a {shape}, number {number}", encoding="utf-8")
        drawn.append(path)
    return drawn


def captioned(place: Path, captions: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a datasets file for one image of 64 x 64 pixels a caption, which are made, with the captions in text files."""
    pictures = place / "pictures"
    pictures.mkdir(exist_ok=True)
    for number, caption in enumerate(captions):
        Image.new("RGB", (64, 64), (number, 80, 120)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(caption)
    return [
        {"id": "all", "instance_data_dir": str(pictures), "caption_strategy": "textfile", "resolution": 64, "crop": True},
        {"id": "texts", "dataset_type": "text_embeds", "default": True, "cache_dir": str(place / "texts")},
    ]


def levels_apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two images of one size in any channel of any pixel, of 255 levels."""
    assert one.size == other.size and one.mode == other.mode
    return max(high for _, high in ImageChops.difference(one, other).getextrema())


def assert_same_images(one: Path, other: Path, *, levels: int = 2) -> None:
    """Two folders hold images of the same names, whose pixels are at most so many of 255 levels apart."""
    pairs = [(path, other / path.name) for path in sorted(one.iterdir())]
    assert pairs and [path.name for path, _ in pairs] == [path.name for path in sorted(other.iterdir())]
    for mine, theirs in pairs:
        assert levels_apart(Image.open(mine).convert("RGB"), Image.open(theirs).convert("RGB")) <= levels, mine.name

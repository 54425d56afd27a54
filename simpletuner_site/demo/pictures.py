"""Generates a folder of small images whose file names are their captions: six scenes in six colours each."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from simpletuner_site.demo.brushes import Canvas, Colour, mix

SIZES = ((192, 192), (256, 192), (192, 256))
JPEG_QUALITY = 94
WHITE: Colour = (250, 248, 240)
NIGHT: Colour = (14, 18, 46)
COLOURS: dict[str, Colour] = {
    "red": (214, 54, 46),
    "orange": (240, 140, 40),
    "yellow": (246, 208, 66),
    "green": (60, 160, 84),
    "blue": (48, 110, 208),
    "purple": (132, 70, 178),
}
BackgroundRenderer = Callable[[Canvas, Colour], None]


def paint_sea(canvas: Canvas, colour: Colour) -> None:
    canvas.gradient(mix(colour, WHITE, 0.25), mix(colour, WHITE, 0.75), 0, 0.6)
    canvas.disc(canvas.dice.uniform(0.3, 0.7), 0.34, 0.13, mix(colour, WHITE, 0.85))
    canvas.gradient((36, 92, 150), (16, 44, 92), 0.6, 1)
    canvas.glints(40, 0.62, 0.98, mix(colour, (120, 170, 220), 0.5))
    canvas.boat(canvas.dice.uniform(0.25, 0.75), 0.72, 0.11, (70, 44, 34), WHITE)


def paint_mountain(canvas: Canvas, colour: Colour) -> None:
    canvas.gradient(mix(colour, WHITE, 0.35), WHITE, 0, 0.75)
    canvas.ridge(0.62, 0.34, mix(colour, (70, 80, 100), 0.45), peaks=3)
    canvas.ridge(0.78, 0.2, mix(colour, (40, 46, 60), 0.6), peaks=4)
    canvas.gradient((70, 120, 70), (38, 78, 46), 0.84, 1)


def paint_moon(canvas: Canvas, colour: Colour) -> None:
    canvas.gradient(NIGHT, mix(NIGHT, colour, 0.45), 0, 1)
    canvas.dots(50, 0, 0.6, (230, 232, 255), 0.008)
    canvas.disc(canvas.dice.uniform(0.3, 0.7), 0.3, 0.15, mix(colour, WHITE, 0.5))
    canvas.ridge(0.86, 0.12, (10, 12, 26), peaks=5)


def paint_forest(canvas: Canvas, colour: Colour) -> None:
    canvas.gradient(mix(colour, WHITE, 0.4), mix(colour, WHITE, 0.8), 0, 0.8)
    canvas.gradient((84, 122, 70), (52, 84, 48), 0.78, 1)
    for row, shade in ((0.84, 0.35), (0.93, 0.0)):
        for _ in range(7):
            canvas.fir(canvas.dice.random(), row, canvas.dice.uniform(0.34, 0.5), mix((24, 74, 46), colour, shade))


def paint_house(canvas: Canvas, colour: Colour) -> None:
    canvas.gradient((150, 176, 206), (226, 234, 242), 0, 0.76)
    canvas.ridge(0.72, 0.12, (200, 214, 228), peaks=2)
    canvas.gradient((244, 246, 250), (214, 224, 236), 0.74, 1)
    canvas.house(canvas.dice.uniform(0.35, 0.65), 0.82, 0.34, mix(colour, WHITE, 0.1), mix(colour, (40, 30, 30), 0.6), (255, 226, 130))
    canvas.dots(60, 0, 1, WHITE, 0.012)


def paint_flowers(canvas: Canvas, colour: Colour) -> None:
    canvas.gradient((116, 186, 236), (214, 236, 250), 0, 0.45)
    canvas.disc(canvas.dice.uniform(0.2, 0.8), 0.2, 0.1, (255, 226, 110))
    canvas.gradient((104, 172, 78), (52, 122, 56), 0.45, 1)
    canvas.dots(110, 0.5, 0.98, colour, 0.035)
    canvas.dots(50, 0.5, 0.98, mix(colour, WHITE, 0.6), 0.014)


SCENES: dict[str, BackgroundRenderer] = {
    "a white boat on the sea under a {} sky": paint_sea,
    "{} mountain landscape in the morning": paint_mountain,
    "a {} moon over dark mountain at night": paint_moon,
    "a forest in {} light": paint_forest,
    "a {} house in the snow": paint_house,
    "a field of {} flower under the sun": paint_flowers,
}


def caption_of(scene: str, colour: str) -> str:
    text = scene.format(colour)
    return text.replace("a orange", "an orange")


def generate_images(folder: Path) -> list[Path]:
    """Generate thirty-six images, JPEG and PNG, square, wide and tall; they are the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for row, (scene, paint) in enumerate(SCENES.items()):
        for column, (name, colour) in enumerate(COLOURS.items()):
            canvas = Canvas(SIZES[(row + column) % len(SIZES)], random.Random(100 * row + column))
            paint(canvas, colour)
            path = folder / f"{caption_of(scene, name)}.{'png' if (row + column) % 2 else 'jpg'}"
            if path.suffix == ".jpg":
                canvas.finished().save(path, quality=JPEG_QUALITY)
            else:
                canvas.finished().save(path)
            written.append(path)
    return written
